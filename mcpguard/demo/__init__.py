"""`mcpguard demo`: an agent loops, and the limits hold. Needs `mcp` and `rich`, which `mcpguard run` never imports."""
