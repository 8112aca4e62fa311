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


def test_a_customer_is_found_by_city_in_any_case() -> None:
    assert companies("LAGOS") == ["Lantern Books"]


def test_an_empty_query_finds_every_customer() -> None:
    assert len(companies("")) == 8


def test_a_query_that_nothing_matches_finds_nobody() -> None:
    assert companies("no such customer") == []


def test_a_report_adds_up_the_orders_of_its_month() -> None:
    assert call("generate_report", month="2026-09").structured_content == {
        "month": "2026-09",
        "orders": 4,
        "revenue_eur": 33_480,
        "best_customer": "Halden Freight",
    }


def test_a_month_without_orders_gives_an_empty_report() -> None:
    report = call("generate_report", month="2020-01").structured_content
    assert (report["orders"], report["revenue_eur"]) == (0, 0)


@pytest.mark.parametrize("month", ["2026-13", "September", "", "2026-09\n"])
def test_an_invalid_month_is_refused(month: str) -> None:
    result = call("generate_report", month=month)
    assert result.is_error
    assert "YYYY-MM" in result.content[0].text


def test_a_page_has_the_title_of_its_customer() -> None:
    assert call("open_page", customer_id="C-1002").structured_content == {"result": "Halden Freight, Oslo"}


def test_the_page_of_an_unknown_customer_is_refused() -> None:
    result = call("open_page", customer_id="C-1")
    assert result.is_error
    assert "no customer 'C-1'" in result.content[0].text


def test_orders_can_never_be_fetched() -> None:
    result = call("sync_orders")
    assert result.is_error
    assert "the warehouse does not answer" in result.content[0].text


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
