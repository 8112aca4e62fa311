"""The client of the Python SDK 2.x."""

import warnings
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Literal

import anyio
from mcp import Client, MCPError, StdioServerParameters, types
from mcp.client.extension import ClaimContext, ClientExtension, ResultClaim
from mcp.types import CallToolResult, Implementation, Result, TextContent

from .steps import Answer, OnSdk, Seen, callbacks, main

warnings.simplefilter("ignore")  # what 2026-07-28 deprecates is used on purpose, in the older eras


class TaskResult(Result):
    result_type: Literal["task"] = "task"
    task_id: str


class Tasks(ClientExtension):
    """Results of the type `task` are waited for, as an extension of 2026-07-28 may have it."""

    identifier = "io.modelcontextprotocol/tasks"

    def claims(self) -> list[ResultClaim[TaskResult]]:
        async def resolve(result: TaskResult, context: ClaimContext) -> CallToolResult:
            content = TextContent(type="text", text=f"task {result.task_id}")
            return CallToolResult(content=[content])

        return [ResultClaim(result_type="task", model=TaskResult, resolve=resolve)]


class OnSdk2(OnSdk):
    error = MCPError

    @property
    def version(self) -> str:
        return str(self.client.protocol_version)

    async def set_level(self, level: Any) -> None:
        if self.version < "2026":
            await self.client.set_logging_level(level)

    @asynccontextmanager
    async def subscribed(self, uri: str) -> AsyncIterator[None]:
        if self.version < "2026":
            await self.client.subscribe_resource(uri)
            yield
            return
        async with self.client.listen(resource_subscriptions=[uri]) as changes, anyio.create_task_group() as tasks:

            async def hear() -> None:
                async for change in changes:
                    self.seen.note("updated", getattr(change, "uri", ""))

            tasks.start_soon(hear)
            yield
            tasks.cancel_scope.cancel()

    async def task(self, tool: str, arguments: Answer) -> Answer:
        return await self.call(tool, arguments)


@asynccontextmanager
async def connect(spec: Answer, name: str, seen: Seen) -> AsyncIterator[OnSdk2]:
    async def hear(message: Any) -> None:
        if getattr(message, "method", "") == "notifications/resources/updated":
            seen.note("updated", str(message.params.uri))

    client = Client(
        StdioServerParameters(command=spec["command"], args=spec["args"], env=spec["env"]),
        mode=spec["mode"],
        client_info=Implementation(name=name, version="1"),
        log_level="debug",
        message_handler=hear,
        extensions=[Tasks()],
        **callbacks(types, seen),
    )
    async with client:
        yield OnSdk2(client, seen)


if __name__ == "__main__":
    main(connect)
