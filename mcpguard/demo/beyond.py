"""The demo's second part: rules that do more than count calls.

The policy file is replaced while the wrappers of the first part run. Then a night job waits for room, a browser opens two pages
at a time, a tool that fails is closed, a repeated call is stopped, and a budget is spent.
"""

from collections.abc import Iterable
from typing import Final

import anyio
from mcp import Client

from mcpguard.demo.page import Page
from mcpguard.demo.stage import ALICE, BOB, CAROL, Person, Stage, Tally
from mcpguard.errors import McpguardError

POLICY: Final = """\
# Bob's night job has time: a search over the limit waits for room.
[[rule]]
user  = "bob@acme.com"
tool  = "search_customers"
limit = "2/1s"
wait  = "10s"

# The browser can open two pages at a time; the others wait.
[[rule]]
tool = "open_page"
concurrent = 2
wait = "10s"

# A tool that has failed 3 times within a minute is closed.
[[rule]]
tool  = "sync_orders"
count = "errors"
limit = "3/1m"

# The same call at most 5 times.
[[rule]]
user  = "*"
per   = ["user", "arguments"]
limit = "5/10m"

# Each user has 100 units an hour. A report costs 20, any other call 1.
[[rule]]
user  = "*"
count = "cost"
limit = "100/1h"

[[cost]]
tool = "generate_report"
cost = 20
"""

NIGHT_JOB_CALLS: Final = 12
PAGES_EACH: Final = 3
SYNC_CALLS: Final = 6
REPEATED_CALLS: Final = 8
REPORTS: Final = 6
MOST_PAGES: Final = 2


async def play(page: Page, stage: Stage, alice: Client, bob: Client, carol: Client) -> None:
    """Replace the policy, make the calls, and print what came of them.

    Raises:
        McpguardError: What the clients received differs from what the servers logged.
    """
    stage.put_policy(POLICY)
    page.heading("More than counting calls: the policy is replaced while the servers run")
    page.verbatim(POLICY)
    page.heading(f"Bob's night job starts {NIGHT_JOB_CALLS} searches at once; the others continue meanwhile")
    night_job = stage.tally(BOB, "search_customers")
    with page.progress("Bob's night job", NIGHT_JOB_CALLS, every=NIGHT_JOB_CALLS + 1) as show:

        async def search(number: int) -> None:
            await night_job.call(bob, query=f"C-{1001 + number}")
            show(night_job.made, _results(night_job))

        async with anyio.create_task_group() as together:
            for number in range(NIGHT_JOB_CALLS):
                together.start_soon(search, number)
            await _open_pages(page, stage, alice, bob)
            await _sync(page, stage, alice)
            await _repeat(page, stage, alice)
            await _spend(page, stage, carol)
    stage.check([night_job])
    page.result("wait", f"Bob's night job is through: {_results(night_job)}, in {max(night_job.took_s):.1f} s.")


async def _open_pages(page: Page, stage: Stage, alice: Client, bob: Client) -> None:
    tallies = [stage.tally(person, "open_page") for person in (ALICE, BOB)]

    async def open_page(tally: Tally, client: Client, number: int) -> None:
        await tally.call(client, customer_id=f"C-{1001 + number}")

    async with anyio.create_task_group() as together:
        for tally, client in zip(tallies, (alice, bob), strict=True):
            for number in range(PAGES_EACH):
                together.start_soon(open_page, tally, client, number)
    stage.check(tallies)
    most = _most_at_once(stage, (ALICE, BOB))
    page.result(
        "concurrent",
        f"Alice and Bob open {PAGES_EACH} pages each, all at once: {_results(*tallies)}. Their servers had at most {most} "
        "pages open at a time.",
    )


async def _sync(page: Page, stage: Stage, alice: Client) -> None:
    tally = stage.tally(ALICE, "sync_orders")
    for _ in range(SYNC_CALLS):
        await tally.call(alice)
    stage.check([tally])
    page.result("errors", f"Alice's agent calls a failing tool {SYNC_CALLS} times: {_results(tally)}.", *_denial(tally))


async def _repeat(page: Page, stage: Stage, alice: Client) -> None:
    repeated = stage.tally(ALICE, "search_customers")
    for _ in range(REPEATED_CALLS):
        await repeated.call(alice, query="solar")
    stage.check([repeated])
    other = stage.tally(ALICE, "search_customers")
    await other.call(alice, query="lagos")
    stage.check([other])
    repeats = f"Alice's agent repeats a search {REPEATED_CALLS} times: {_results(repeated)}."
    page.result("arguments", f"{repeats} Another search: {_results(other)}.", *_denial(repeated))


async def _spend(page: Page, stage: Stage, carol: Client) -> None:
    tally = stage.tally(CAROL, "generate_report")
    for number in range(REPORTS):
        await tally.call(carol, month=f"2026-{4 + number:02}")
    stage.check([tally])
    page.result("cost", f"Carol asks for {REPORTS} reports of 20 units: {_results(tally)}.", *_denial(tally))


def _denial(tally: Tally) -> list[str]:
    """What the client was told when it was denied first."""
    return [f'"{tally.first_denial.message}"'] if tally.first_denial else []


def _results(*tallies: Tally) -> str:
    answered, failed = sum(tally.answered for tally in tallies), sum(tally.failed for tally in tallies)
    results = [f"{answered} answered"] if answered or not failed else []
    results += [f"{failed} failed"] if failed else []
    return ", ".join([*results, f"{sum(tally.denied.total() for tally in tallies)} denied"])


def _most_at_once(stage: Stage, people: Iterable[Person]) -> int:
    """How many pages the people's servers had open at a time, at most.

    Raises:
        McpguardError: They were more than the policy allows.
    """
    spans = [entry["page_us"] for person in people for entry in stage.logged(person) if "page_us" in entry]
    most = max((sum(begun <= at < ended for begun, ended in spans) for at, _ in spans), default=0)
    if most > MOST_PAGES:
        raise McpguardError(f"the demo failed: {most} pages were open at a time, more than {MOST_PAGES}")
    return most
