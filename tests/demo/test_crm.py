"""The bundled CRM server, called in-process. The demo calls it over stdio."""

from typing import Any

import anyio
import pytest
from mcp import Client

from mcpguard.demo.crm import server


def call(tool: str, **arguments: str) -> Any:
    async def run() -> Any:
        async with Client(server) as client:
            return await client.call_tool(tool, arguments)

    return anyio.run(run)


def test_it_lists_four_tools() -> None:
    async def names() -> list[str]:
        async with Client(server) as client:
            return [tool.name for tool in (await client.list_tools()).tools]

    assert anyio.run(names) == ["search_customers", "generate_report", "open_page", "sync_orders"]


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
