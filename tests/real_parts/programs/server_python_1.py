"""A server on the high level of the Python SDK 1.x, which is in an environment of its own."""
# mypy: ignore-errors

from mcp.server.fastmcp import Context, FastMCP
from pydantic import BaseModel

from .tools import add_tools

server = FastMCP("own")
add_tools(server, Context)


class Name(BaseModel):
    name: str


@server.tool()
async def ask(context: Context) -> str:
    answer = await context.elicit("Name?", Name)
    return f"hello {answer.data.name}"


if __name__ == "__main__":
    server.run()
