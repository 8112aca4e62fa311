"""The CRM server that comes with mcpguard, as a script: an MCP server on stdin and stdout with four tools."""

from mcpguard.demo.crm import server

if __name__ == "__main__":
    server.run()
