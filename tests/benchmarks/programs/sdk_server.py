"""A server on the Python SDK, as people write them: its start takes most of a second."""

from mcp.server.mcpserver import MCPServer

server = MCPServer("sdk")


@server.tool()
def echo(message: str) -> str:
    return message


if __name__ == "__main__":
    server.run()
