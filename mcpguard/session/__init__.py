"""The state machine of one session: messages in, what is asked of the store, messages out; audit rows."""
