"""The client of FastMCP, which is in an environment of its own."""
# mypy: ignore-errors

import warnings
from contextlib import asynccontextmanager

from fastmcp import Client
from fastmcp.client.elicitation import ElicitResult
from fastmcp.client.transports import StdioTransport
from mcp import MCPError
from mcp.types import Implementation

from .steps import OnSdk, main, told

warnings.simplefilter("ignore")  # what 2026-07-28 deprecates is used on purpose, in the older eras


class OnFastMcp(OnSdk):
    @property
    def version(self):
        return self.client.protocol_version

    async def tools(self):
        return [tool.name for tool in await self.client.list_tools()]

    async def call(self, tool, arguments):
        try:
            return told(await self.client.call_tool_mcp(tool, arguments, progress_handler=self.note))
        except MCPError as error:
            return {"code": error.code, "message": error.message, "data": error.data}

    async def set_level(self, level):
        if self.version < "2026":
            await self.client.set_logging_level(level)

    @asynccontextmanager
    async def subscribed(self, uri):
        await self.client.session.subscribe_resource(uri)
        yield

    async def task(self, tool, arguments):
        raise NotImplementedError


@asynccontextmanager
async def connect(spec, name, seen):
    async def elicit(message, response_type, params, context):
        seen.note("asked", "elicitation/create")
        return ElicitResult(action="accept", content={"name": "Ann"})

    async def sample(messages, params, context):
        seen.note("asked", "sampling/createMessage")
        return "sampled"

    async def roots(context):
        seen.note("asked", "roots/list")
        return [f"file://{seen.root}"]

    async def log(message):
        seen.note("logged", str(message.data))

    async def hear(message):
        if getattr(message, "method", "") == "notifications/resources/updated":
            seen.note("updated", str(message.params.uri))

    client = Client(
        StdioTransport(command=spec["command"], args=spec["args"], env=spec["env"], keep_alive=False),
        mode=spec["mode"],
        client_info=Implementation(name=name, version="1"),
        elicitation_handler=elicit,
        sampling_handler=sample,
        roots=roots,
        log_handler=log,
        message_handler=hear,
    )
    async with client:
        yield OnFastMcp(client, seen)


if __name__ == "__main__":
    main(connect)
