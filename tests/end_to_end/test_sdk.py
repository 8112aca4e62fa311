"""Real clients and servers: the official SDK's, and the reference server of the TypeScript one."""

import sys
from pathlib import Path
from typing import Any, Literal

import anyio
import pytest
from mcp import Client, Implementation, MCPError, StdioServerParameters
from mcp.types import TextContent

from .host import SERVERS, audit, environment, policy, rule, total

Mode = Literal["auto", "legacy"]


def guarded(home: Path, *command: str, options: tuple[str, ...] = ()) -> StdioServerParameters:
    """A server behind the guard, as the SDK's client starts one."""
    arguments = ["-m", "mcpguard", "run", "--user", "alice", "--server", "crm", *options, "--", *command]
    return StdioServerParameters(command=sys.executable, args=arguments, env=environment(home))


ERRORS = ("--denials", "error")
ON_THE_SDK = (sys.executable, str(SERVERS / "on_the_sdk.py"))


def text(result: Any) -> str:
    content = result.content[0]
    assert isinstance(content, TextContent)
    return content.text


@pytest.mark.parametrize("mode", ["auto", "legacy"])
def test_the_official_client_that_gives_no_name_of_its_own_gets_a_denial_as_a_result(tmp_path: Path, mode: Mode) -> None:
    policy(tmp_path, rule("1/1h", user="*", tool="search_customers"))

    async def run() -> Any:
        async with Client(guarded(tmp_path, *ON_THE_SDK), mode=mode) as client:
            await client.call_tool("search_customers", {"query": "oslo"})
            return await client.call_tool("search_customers", {"query": "oslo"})

    result = anyio.run(run)
    assert result.is_error
    assert text(result).startswith("Tool search_customers rate limit exceeded for user alice: 1 call per 1h.")
    assert result.meta["mcpguard/denial"]["axis"] == "user"


@pytest.mark.parametrize("mode", ["auto", "legacy"])
def test_the_official_client_with_a_name_of_its_own_gets_a_denial_as_an_error(tmp_path: Path, mode: Mode) -> None:
    policy(tmp_path, rule("1/1h", user="*", tool="search_customers"))
    name = Implementation(name="my-own", version="1")

    async def run() -> MCPError:
        async with Client(guarded(tmp_path, *ON_THE_SDK), mode=mode, client_info=name) as client:
            await client.call_tool("search_customers", {"query": "oslo"})
            with pytest.raises(MCPError) as denial:
                await client.call_tool("search_customers", {"query": "oslo"})
            return denial.value

    denial = anyio.run(run)
    assert (denial.code, denial.data["axis"]) == (429, "user")
    assert {row["agent"] for row in audit(tmp_path)} == {"my-own::interactive::default"}


def test_calls_of_the_official_client_at_the_same_time_are_each_answered(tmp_path: Path) -> None:
    policy(tmp_path, rule("20/1h", user="*", tool="search_customers"))
    found: list[str] = []
    codes: list[int] = []

    async def run() -> None:
        async with Client(guarded(tmp_path, *ON_THE_SDK, options=ERRORS)) as client:

            async def search(city: str) -> None:
                try:
                    found.append(text(await client.call_tool("search_customers", {"query": city})))
                except MCPError as error:
                    codes.append(error.code)

            async with anyio.create_task_group() as tasks:
                for number in range(60):
                    tasks.start_soon(search, str(number))

    anyio.run(run)
    assert len(set(found)) == 20
    assert codes == [429] * 40
    rows = audit(tmp_path)
    assert (total(rows, "allowed"), total(rows, "rate_limited")) == (20, 40)
