"""A server on the high level of the Python SDK 2.x."""

from typing import Annotated, Any

from mcp.server.context import CallNext, HandlerResult, ServerRequestContext
from mcp.server.mcpserver import Context, Elicit, Extension, MCPServer, Resolve
from mcp.types import CallToolRequestParams
from pydantic import BaseModel

from .tools import add_tools


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
add_tools(server, Context)


class Name(BaseModel):
    name: str


def who() -> Elicit[Name]:
    return Elicit("Name?", Name)


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
