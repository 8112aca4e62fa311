"""mcpguard: rate limits by user, tool and agent in front of any stdio MCP server."""

__version__ = "0.1.0"
