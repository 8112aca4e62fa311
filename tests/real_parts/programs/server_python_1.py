"""A server on the low level of the Python SDK 1.x, which is in an environment of its own, with its experimental tasks."""
# mypy: ignore-errors

import warnings

import anyio
from mcp import types as t
from mcp.server.lowlevel import Server
from mcp.server.stdio import stdio_server
from pydantic import AnyUrl

warnings.simplefilter("ignore")  # tasks are deprecated there

server = Server("own")
server.experimental.enable_tasks()
gave_up = anyio.Event()
released = anyio.Event()
ANY = {"type": "object"}
NAME = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}


@server.list_tools()
async def tools():
    names = ("echo", "count", "release", "say", "hang", "gave_up", "ask", "touch")
    work = t.Tool(name="work", inputSchema=ANY, execution=t.ToolExecution(taskSupport="required"))
    return [*(t.Tool(name=name, inputSchema=ANY) for name in names), work]


async def report(progress):
    context = server.request_context
    await context.session.send_progress_notification(
        context.meta.progressToken, progress, related_request_id=context.request_id
    )


async def count(arguments):
    for step in range(arguments["steps"]):
        await report(step + 1)
    await released.wait()
    return f"counted {arguments['steps']}"


async def release(arguments):
    released.set()
    return "released"


async def say(arguments):
    await server.request_context.session.send_log_message("info", "said")
    return "said"


async def hang(arguments):
    await report(1)
    try:
        await anyio.sleep_forever()
    finally:
        gave_up.set()


async def heard(arguments):
    await gave_up.wait()
    return "gave up"


async def ask(arguments):
    answer = await server.request_context.session.elicit("Name?", NAME, related_request_id=server.request_context.request_id)
    return f"hello {answer.content['name']}"


async def touch(arguments):
    await server.request_context.session.send_resource_updated(AnyUrl("own://thing"))
    return "touched"


async def echo(arguments):
    return f"echo: {arguments['message']}"


DO = {"echo": echo, "count": count, "release": release, "say": say, "hang": hang, "gave_up": heard, "ask": ask, "touch": touch}


@server.call_tool()
async def call(name, arguments):
    if name == "work":

        async def work(task):
            return t.CallToolResult(content=[t.TextContent(type="text", text="worked")])

        return await server.request_context.experimental.run_task(work)
    return [t.TextContent(type="text", text=await DO[name](arguments))]


@server.set_logging_level()
async def level(level):
    pass


@server.list_resources()
async def resources():
    return [t.Resource(uri="own://thing", name="thing")]


@server.subscribe_resource()
async def subscribe(uri):
    pass


async def main():
    async with stdio_server() as (reading, writing):
        await server.run(reading, writing, server.create_initialization_options())


if __name__ == "__main__":
    anyio.run(main)
