"""The tools that every server of a high level has, whatever its SDK."""
# mypy: ignore-errors

import warnings
from typing import Any

import anyio

warnings.simplefilter("ignore")  # what 2026-07-28 deprecates is used on purpose, in the older eras


def add_tools(server: Any, Context: Any) -> None:  # noqa: N803 - a type
    """Give a server its tools; `Context` is what its SDK hands to a tool."""
    given_up = anyio.Event()
    released = anyio.Event()

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
