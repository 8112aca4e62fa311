"""The session: the state machine between a client and a server, one event in, commands out."""
