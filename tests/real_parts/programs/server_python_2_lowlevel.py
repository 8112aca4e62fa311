"""A server on the low level of the Python SDK 2.x."""

import warnings
from typing import Any

import anyio
from mcp.server import Server, ServerRequestContext
from mcp.server.stdio import stdio_server
from mcp.server.subscriptions import InMemorySubscriptionBus, ListenHandler, ResourceUpdated
from mcp.types import (
    CallToolRequestParams,
    CallToolResult,
    ElicitRequest,
    ElicitRequestFormParams,
    ElicitResult,
    EmptyResult,
    InputRequiredResult,
    ListResourcesResult,
    ListToolsResult,
    PaginatedRequestParams,
    Resource,
    SetLevelRequestParams,
    SubscribeRequestParams,
    TextContent,
    Tool,
)

warnings.simplefilter("ignore")  # what 2026-07-28 deprecates is used on purpose, in the older eras

Context = ServerRequestContext[Any, Any]
NAME: dict[str, Any] = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
TOOLS = ("echo", "count", "release", "say", "hang", "gave_up", "ask", "touch")
bus = InMemorySubscriptionBus()
given_up = anyio.Event()
released = anyio.Event()


async def tools(context: Context, params: PaginatedRequestParams | None) -> ListToolsResult:
    return ListToolsResult(tools=[Tool(name=name, input_schema={"type": "object"}) for name in TOOLS])


async def ask(context: Context, params: CallToolRequestParams) -> str | InputRequiredResult:
    if context.protocol_version < "2026":
        answer = await context.session.elicit_form("Name?", NAME, related_request_id=context.request_id)
    elif params.input_responses is None:
        question = ElicitRequest(params=ElicitRequestFormParams(message="Name?", requested_schema=NAME))
        return InputRequiredResult(input_requests={"who": question}, request_state="asked")
    else:
        assert params.request_state == "asked"
        given = params.input_responses["who"]
        assert isinstance(given, ElicitResult)
        answer = given
    assert answer.content
    return f"hello {answer.content['name']}"


async def hang(context: Context) -> str:
    await context.session.report_progress(1, 2)
    try:
        await anyio.sleep_forever()
    finally:
        given_up.set()
    return "never"


async def does(context: Context, params: CallToolRequestParams) -> str | InputRequiredResult:
    arguments = params.arguments or {}
    match params.name:
        case "echo":
            return f"echo: {arguments['message']}"
        case "count":
            for step in range(arguments["steps"]):
                await context.session.report_progress(step + 1, arguments["steps"])
            await released.wait()
            return f"counted {arguments['steps']}"
        case "release":
            released.set()
            return "released"
        case "say":
            await context.session.send_log_message("info", "said", related_request_id=context.request_id)
            return "said"
        case "hang":
            return await hang(context)
        case "gave_up":
            await given_up.wait()
            return "gave up"
        case "ask":
            return await ask(context, params)
        case "touch":
            await bus.publish(ResourceUpdated("own://thing"))
            if context.protocol_version < "2026":
                await context.session.send_resource_updated("own://thing")
            return "touched"
        case other:
            raise ValueError(other)


async def call(context: Context, params: CallToolRequestParams) -> CallToolResult | InputRequiredResult:
    said = await does(context, params)
    return said if isinstance(said, InputRequiredResult) else CallToolResult(content=[TextContent(type="text", text=said)])


async def level(context: Context, params: SetLevelRequestParams) -> EmptyResult:
    return EmptyResult()


async def resources(context: Context, params: PaginatedRequestParams | None) -> ListResourcesResult:
    return ListResourcesResult(resources=[Resource(uri="own://thing", name="thing")])


async def subscribe(context: Context, params: SubscribeRequestParams) -> EmptyResult:
    return EmptyResult()


server = Server(
    "own",
    on_list_tools=tools,
    on_call_tool=call,
    on_set_logging_level=level,
    on_list_resources=resources,
    on_subscribe_resource=subscribe,
    on_subscriptions_listen=ListenHandler(bus),
)


async def main() -> None:
    async with stdio_server() as (reading, writing):
        await server.run(reading, writing, server.create_initialization_options())


if __name__ == "__main__":
    anyio.run(main)
