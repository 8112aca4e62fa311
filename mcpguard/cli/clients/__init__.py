"""`mcpguard install`, `uninstall` and `clients`: the servers in clients' files."""
