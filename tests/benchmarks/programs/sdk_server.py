"""A server on the Python SDK, as people write them: its start takes most of a second."""

from mcp.server.mcpserver import MCPServer

server = MCPServer("sdk")


@server.tool()
def echo(query: str, limit: int, newest_first: bool) -> str:
    return f"{query}, {limit}, {newest_first}"


if __name__ == "__main__":
    server.run()
