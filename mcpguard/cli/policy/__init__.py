"""The commands of `mcpguard policy`, which show, check, explain and edit limits."""
