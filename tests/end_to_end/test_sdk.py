"""Real clients and servers: the official SDK's, and the reference server of the TypeScript one."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import anyio
import pytest
from mcp import Client, Implementation, MCPError, StdioServerParameters
from mcp.types import TextContent

from .host import SERVERS, audit, environment, policy, rule, total

Mode = Literal["auto", "legacy"]
EVERYTHING = "@modelcontextprotocol/server-everything@2026.8.31"


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
def test_the_official_client_and_server_work_through_the_guard_and_a_denial_is_raised_with_all_it_says(
    tmp_path: Path, mode: Mode
) -> None:
    policy(tmp_path, rule("2/1h", user="*", tool="search_customers"))
    steps: list[tuple[float, float | None]] = []

    async def note(progress: float, total: float | None, message: str | None) -> None:
        steps.append((progress, total))

    async def run() -> MCPError:
        async with Client(guarded(tmp_path, *ON_THE_SDK, options=ERRORS), mode=mode) as client:
            tools = (await client.list_tools()).tools
            assert [tool.name for tool in tools] == ["search_customers", "import_customers"]
            for city in ("oslo", "lyon"):
                result = await client.call_tool("search_customers", {"query": city})
                assert text(result) == f"customers in {city}"
            imported = await client.call_tool("import_customers", {"rows": 3}, progress_callback=note)
            assert text(imported) == "3 imported"
            with pytest.raises(MCPError) as denial:
                await client.call_tool("search_customers", {"query": "rome"})
            assert text(await client.call_tool("import_customers", {"rows": 0})) == "0 imported"
            return denial.value

    denial = anyio.run(run)
    assert steps == [(1, 3), (2, 3), (3, 3)]
    assert denial.code == 429
    assert denial.message.startswith("Tool search_customers rate limit exceeded for user alice: 2 calls per 1h. Retry in 3")
    assert denial.data["axis"] == "user"
    assert 3_500_000 < denial.data["retry_after_ms"] <= 3_600_000
    rows = audit(tmp_path)
    assert {row["id"] for row in rows if row["decision"] == "rate_limited"} == {denial.data["audit_id"]}
    assert [row["outcome"] for row in rows if row["decision"] == "allowed"] == ["ok"] * 4
    assert {(row["agent"], row["agent_source"]) for row in rows} == {("mcp::interactive::default", "clientInfo")}


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


@pytest.fixture(scope="session")
def everything(request: pytest.FixtureRequest) -> list[str]:
    """The command of the TypeScript SDK's reference server, installed once into pytest's cache."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if not (node and npm):
        missing = "node and npm are not here"
        if os.environ.get("MCPGUARD_REQUIRE_NODE"):
            pytest.fail(missing)
        pytest.skip(missing)
    version = EVERYTHING.rpartition("@")[2]
    place = Path(request.config.cache.mkdir("server-everything")) / version
    if not place.exists():
        partial = place.with_suffix(".partial")
        options = ["--silent", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix", str(partial)]
        subprocess.run([npm, "install", *options, EVERYTHING], check=True)
        partial.rename(place)
    script = place / "node_modules" / "@modelcontextprotocol" / "server-everything" / "dist" / "index.js"
    return [node, str(script), "stdio"]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("mode", ["auto", "legacy"])
def test_the_reference_server_works_through_the_guard(tmp_path: Path, everything: list[str], mode: Mode) -> None:
    policy(tmp_path, rule("3/1h", user="*", tool="echo"))
    steps: list[float] = []

    async def note(progress: float, total: float | None, message: str | None) -> None:
        steps.append(progress)

    async def run() -> MCPError:
        async with Client(guarded(tmp_path, *everything, options=ERRORS), mode=mode) as client:
            tools = {tool.name for tool in (await client.list_tools()).tools}
            assert {"echo", "trigger-long-running-operation"} <= tools
            assert (await client.list_prompts()).prompts
            assert (await client.list_resources()).resources
            for number in range(3):
                assert text(await client.call_tool("echo", {"message": f"é{number}\u2028"})) == f"Echo: é{number}\u2028"
            long = {"duration": 0.05, "steps": 2}
            await client.call_tool("trigger-long-running-operation", long, progress_callback=note)
            with pytest.raises(MCPError) as denial:
                await client.call_tool("echo", {"message": "again"})
            return denial.value

    denial = anyio.run(run)
    assert (denial.code, denial.data["limit"]) == (429, 3)
    assert steps == [1, 2]
    assert total(audit(tmp_path), "allowed") == 4
