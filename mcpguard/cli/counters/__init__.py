"""`mcpguard usage` and `mcpguard reset`: counters."""
