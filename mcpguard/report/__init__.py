"""The page of `mcpguard audit report`: reads the audit log, never on a call's path."""
