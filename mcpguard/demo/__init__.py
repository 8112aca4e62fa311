"""`mcpguard demo`. Imports `mcp` and `rich`, which `mcpguard run` never does."""
