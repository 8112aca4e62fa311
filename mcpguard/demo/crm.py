"""A small CRM as an MCP server, for the demo, the examples and first steps: `python -m mcpguard.demo.crm`.

Its data is made up and is in memory. Two of its tools behave badly on purpose: `open_page` is slow, and `sync_orders` fails.

If the variable `CRM_CALL_LOG` names a file, the server appends the tool of each call that it receives to it, one a line.
The demo counts those calls, to show that the denied ones did not arrive.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path

import anyio
from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.exceptions import ToolError

CALL_LOG_VARIABLE = "CRM_CALL_LOG"

PAGE_S = 0.3
"""How long a page takes to open."""


@dataclass(frozen=True)
class Customer:
    """A company, and the person to contact there."""

    id: str
    company: str
    contact: str
    email: str
    city: str
    plan: str


@dataclass(frozen=True)
class Report:
    """The sales of one month; money in whole euros."""

    month: str
    orders: int
    revenue_eur: int
    best_customer: str


_CUSTOMERS = {
    one.id: one
    for one in (
        Customer("C-1001", "Birchwood Dental", "Ines Moreau", "ines@birchwood-dental.example", "Lyon", "team"),
        Customer("C-1002", "Halden Freight", "Jonas Berg", "jonas@halden-freight.example", "Oslo", "enterprise"),
        Customer("C-1003", "Kestrel Optics", "Priya Nair", "priya@kestrel-optics.example", "Pune", "team"),
        Customer("C-1004", "Lantern Books", "Tom Achebe", "tom@lantern-books.example", "Lagos", "starter"),
        Customer("C-1005", "Marlow & Sons", "Grace Marlow", "grace@marlow-sons.example", "Leeds", "starter"),
        Customer("C-1006", "Northwind Solar", "Elif Kaya", "elif@northwind-solar.example", "Izmir", "enterprise"),
        Customer("C-1007", "Pico Robotics", "Kenji Sato", "kenji@pico-robotics.example", "Osaka", "team"),
        Customer("C-1008", "Silverline Hotels", "Ana Duarte", "ana@silverline-hotels.example", "Porto", "enterprise"),
    )
}

# (month, customer, euros); a customer orders at most once a month
_ORDERS = (
    ("2026-07", "C-1002", 18_400),
    ("2026-07", "C-1003", 2_950),
    ("2026-07", "C-1006", 12_700),
    ("2026-08", "C-1001", 3_100),
    ("2026-08", "C-1006", 15_250),
    ("2026-08", "C-1007", 4_480),
    ("2026-08", "C-1008", 9_900),
    ("2026-09", "C-1002", 21_050),
    ("2026-09", "C-1004", 490),
    ("2026-09", "C-1005", 640),
    ("2026-09", "C-1008", 11_300),
)

server = MCPServer(
    "crm",
    title="Acme CRM",
    instructions="Find customers with search_customers; get a month's sales with generate_report.",
    log_level="WARNING",
)


@server.tool()
def search_customers(query: str) -> list[Customer]:
    """Find customers by company, contact, e-mail address, city or plan.

    Args:
        query: Text to look for, in any case; an empty one finds every customer.
    """
    _log_call("search_customers")
    wanted = query.casefold().strip()
    return [customer for customer in _CUSTOMERS.values() if any(wanted in text.casefold() for text in vars(customer).values())]


@server.tool()
def generate_report(month: str) -> Report:
    """Add up the sales of one month: orders, revenue and the best customer.

    Args:
        month: The month as YYYY-MM, such as 2026-09.
    """
    _log_call("generate_report")
    if not re.fullmatch(r"\d{4}-(0[1-9]|1[0-2])", month):
        raise ToolError(f"month must be YYYY-MM, such as 2026-09, not {month!r}")
    orders = [(euros, customer) for ordered, customer, euros in _ORDERS if ordered == month]
    best = _CUSTOMERS[max(orders)[1]].company if orders else "nobody"
    return Report(month, len(orders), sum(euros for euros, _ in orders), best)


@server.tool()
async def open_page(customer_id: str) -> str:
    """Open a customer's page in a browser, and return its title. It takes a moment.

    Args:
        customer_id: The customer's id, such as C-1001.
    """
    _log_call("open_page")
    customer = _CUSTOMERS.get(customer_id)
    if customer is None:
        raise ToolError(f"there is no customer {customer_id!r}")
    await anyio.sleep(PAGE_S)
    return f"{customer.company}, {customer.city}"


@server.tool()
def sync_orders() -> str:
    """Fetch new orders from the warehouse. The warehouse never answers, so this always fails."""
    _log_call("sync_orders")
    raise ToolError("the warehouse does not answer")


def _log_call(tool: str) -> None:
    if path := os.environ.get(CALL_LOG_VARIABLE):
        with Path(path).open("a", encoding="utf-8") as log:
            log.write(tool + "\n")


if __name__ == "__main__":
    server.run()
