"""The client of the Python SDK 1.x, which is in an environment of its own."""
# mypy: ignore-errors

import warnings
from contextlib import asynccontextmanager

import anyio
from mcp import ClientSession, McpError, StdioServerParameters
from mcp import types as t
from mcp.client.stdio import stdio_client
from pydantic import AnyUrl

from .steps import OnSdk, callbacks, main

warnings.simplefilter("ignore")  # tasks are deprecated there


class OnSdk1(OnSdk):
    error = McpError

    def __init__(self, client, seen, version):
        super().__init__(client, seen)
        self.version = version

    async def cancel(self, tool, arguments):
        number = self.client._request_id  # this SDK has no way to tell a server that a request was given up
        await super().cancel(tool, arguments)
        params = t.CancelledNotificationParams(requestId=number)
        await self.client.send_notification(t.ClientNotification(t.CancelledNotification(params=params)))

    async def set_level(self, level):
        await self.client.set_logging_level(level)

    @asynccontextmanager
    async def subscribed(self, uri):
        await self.client.subscribe_resource(AnyUrl(uri))
        yield

    async def task(self, tool, arguments):
        async def result():
            task = (await self.client.experimental.call_tool_as_task(tool, arguments)).task
            async for _ in self.client.experimental.poll_task(task.taskId):
                pass
            return await self.client.experimental.get_task_result(task.taskId, t.CallToolResult)

        return await self.answered(result())


@asynccontextmanager
async def connect(spec, name, seen):
    async def hear(message):
        if isinstance(getattr(message, "root", None), t.ResourceUpdatedNotification):
            seen.note("updated", str(message.root.params.uri))

    parameters = StdioServerParameters(command=spec["command"], args=spec["args"], env=spec["env"])
    try:
        async with (
            stdio_client(parameters) as (reading, writing),
            ClientSession(
                reading,
                writing,
                client_info=t.Implementation(name=name, version="1"),
                message_handler=hear,
                **callbacks(t, seen),
            ) as session,
        ):
            began = await session.initialize()
            yield OnSdk1(session, seen, began.protocolVersion)
    except* anyio.BrokenResourceError:
        pass  # this SDK stumbles over what a server sends while the session closes


if __name__ == "__main__":
    main(connect)
