"""Moves bytes between client and server, and runs the server's process. It decides nothing."""
