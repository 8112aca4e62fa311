"""The bundled CRM server, called in-process and over stdio."""

import sys
from pathlib import Path
from typing import Any

import anyio
import pytest
from mcp import Client, StdioServerParameters

from mcpguard.demo.crm import CALL_LOG_VARIABLE, server

ROOT = Path(__file__).parents[2]


def call(tool: str, **arguments: str) -> Any:
    async def run() -> Any:
        async with Client(server) as client:
            return await client.call_tool(tool, arguments)

    return anyio.run(run)


def companies(query: str) -> list[str]:
    return [customer["company"] for customer in call("search_customers", query=query).structured_content["result"]]


@pytest.mark.parametrize(("query", "found"), [("LAGOS", ["Lantern Books"]), ("no such customer", [])])
def test_a_customer_is_found_by_city_in_any_case(query: str, found: list[str]) -> None:
    assert companies(query) == found
    assert len(companies("")) == 8


def test_a_report_adds_up_the_orders_of_its_month() -> None:
    september = {"month": "2026-09", "orders": 4, "revenue_eur": 33_480, "best_customer": "Halden Freight"}
    assert call("generate_report", month="2026-09").structured_content == september
    none = call("generate_report", month="2020-01").structured_content
    assert (none["orders"], none["revenue_eur"]) == (0, 0)


def test_a_page_has_the_title_of_its_customer() -> None:
    assert call("open_page", customer_id="C-1002").structured_content == {"result": "Halden Freight, Oslo"}


@pytest.mark.parametrize(
    ("tool", "arguments", "why"),
    [
        *(("generate_report", {"month": month}, "YYYY-MM") for month in ("2026-13", "September", "", "2026-09\n")),
        ("open_page", {"customer_id": "C-1"}, "no customer 'C-1'"),
        ("sync_orders", {}, "the warehouse does not answer"),
    ],
)
def test_a_call_that_fails_says_why(tool: str, arguments: dict[str, str], why: str) -> None:
    result = call(tool, **arguments)
    assert result.is_error
    assert why in result.content[0].text


def test_over_stdio_it_lists_its_tools_and_notes_the_calls_that_reach_it(tmp_path: Path) -> None:
    log = tmp_path / "calls.jsonl"
    command = StdioServerParameters(
        command=sys.executable, args=["-m", "mcpguard.demo.crm"], cwd=ROOT, env={CALL_LOG_VARIABLE: str(log)}
    )

    async def run() -> list[str]:
        async with Client(command) as client:
            tools = (await client.list_tools()).tools
            await client.call_tool("search_customers", {"query": "pune"})
            await client.call_tool("generate_report", {"month": "2026-08"})
            await client.call_tool("open_page", {"customer_id": "C-1001"})
            return [tool.name for tool in tools]

    assert anyio.run(run) == ["search_customers", "generate_report", "open_page", "sync_orders"]
    assert log.read_text("utf-8").split() == ["search_customers", "generate_report", "open_page"]
