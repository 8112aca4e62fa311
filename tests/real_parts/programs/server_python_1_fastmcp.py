"""A server on the high level of the Python SDK 1.x, which is in an environment of its own."""
# mypy: ignore-errors

import anyio
from mcp.server.fastmcp import Context, FastMCP
from pydantic import BaseModel

server = FastMCP("own")
given_up = anyio.Event()
released = anyio.Event()


class Name(BaseModel):
    name: str


@server.tool()
def echo(message: str) -> str:
    return f"echo: {message}"


@server.tool()
async def count(steps: int, context: Context) -> str:
    for step in range(steps):
        await context.report_progress(step + 1, steps)
    await released.wait()
    return f"counted {steps}"


@server.tool()
def release() -> str:
    released.set()
    return "released"


@server.tool()
async def say(context: Context) -> str:
    await context.info("said")
    return "said"


@server.tool()
async def hang(context: Context) -> str:
    await context.report_progress(1, 2)
    try:
        await anyio.sleep_forever()
    finally:
        given_up.set()


@server.tool()
async def gave_up() -> str:
    await given_up.wait()
    return "gave up"


@server.tool()
async def ask(context: Context) -> str:
    answer = await context.elicit("Name?", Name)
    return f"hello {answer.data.name}"


if __name__ == "__main__":
    server.run()
