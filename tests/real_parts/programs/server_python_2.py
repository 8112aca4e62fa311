"""A server on the high level of the Python SDK 2.x."""

import warnings
from typing import Annotated, Any

import anyio
from mcp.server.context import CallNext, HandlerResult, ServerRequestContext
from mcp.server.mcpserver import Context, Elicit, Extension, MCPServer, Resolve
from mcp.types import CallToolRequestParams
from pydantic import BaseModel

warnings.simplefilter("ignore")  # what 2026-07-28 deprecates is used on purpose, in the older eras


class Tasks(Extension):
    """Answers calls of `work` with a task, as an extension of 2026-07-28 may."""

    identifier = "io.modelcontextprotocol/tasks"

    async def intercept_tool_call(
        self, params: CallToolRequestParams, ctx: ServerRequestContext[Any, Any], call_next: CallNext
    ) -> HandlerResult:
        if params.name == "work":
            return {"resultType": "task", "taskId": "task-1"}
        return await call_next(ctx)


server = MCPServer("own", extensions=[Tasks()])
given_up = anyio.Event()
released = anyio.Event()


class Name(BaseModel):
    name: str


def who() -> Elicit[Name]:
    return Elicit("Name?", Name)


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
    return "never"


@server.tool()
async def gave_up() -> str:
    await given_up.wait()
    return "gave up"


@server.tool()
async def ask(name: Annotated[Name, Resolve(who)]) -> str:
    return f"hello {name.name}"


@server.tool(structured_output=False)
async def work() -> str:
    return "no task"


@server.resource("own://thing")
def thing() -> str:
    return "a thing"


@server.tool()
async def touch(context: Context) -> str:
    await context.notify_resource_updated("own://thing")
    return "touched"


if __name__ == "__main__":
    server.run()
