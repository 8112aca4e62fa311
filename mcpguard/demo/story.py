"""The demo's story: Alice's agent loops, and Bob's calls are not affected.

The demo starts real `mcpguard run` processes with the bundled CRM server behind them, and calls them through the MCP SDK's
client. Only the users and the names of their clients are made up. `beyond` tells what happens under another policy.
"""

import signal
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from statistics import median

import anyio
from mcp import Client, MCPError

from mcpguard.demo import beyond
from mcpguard.demo.page import Page, ReaderGone
from mcpguard.demo.stage import ALICE, BOB, CAROL, Person, Stage, Tally, last_line, temporary_stage
from mcpguard.errors import ExitStatus, McpguardError

POLICY = """\
# Every user may search 100 times an hour.
[[rule]]
user  = "*"
tool  = "search_customers"
limit = "100/1h"

# Bob may search 10 times.
[[rule]]
user  = "bob@acme.com"
tool  = "search_customers"
limit = "10/1h"

# Five reports a minute, by all users together.
[[rule]]
tool  = "generate_report"
limit = "5/1m"

# The Explore subagent of Claude Code: 20 calls an hour, whatever it calls.
[[rule]]
agent = "Claude Code::subagent::Explore"
limit = "20/1h"
"""

LOOP_CALLS = 3_000
BOB_CALLS = 10
SUBAGENT_CALLS = 30
BOB_REPORTS = 2
ALICE_REPORTS = 4
AUDIT_ROWS = 8

_STORY_TIMEOUT_S = 120.0
"""The story takes about ten seconds. After this time the demo gives up."""


def run_demo(*, keep: bool) -> int:
    """Run the demo, and print it to stdout.

    Args:
        keep: Whether the temporary folder stays, and its path is printed.

    Returns:
        The exit status: 0, also if the reader of stdout goes away; 128 + n after signal n (130 for Ctrl-C).

    Raises:
        McpguardError: The demo failed.
    """
    page = Page()
    with temporary_stage(keep=keep) as stage:
        stage.put_policy(POLICY)
        try:
            return anyio.run(_tell_until_signal, page, stage)
        except Exception as error:
            cause = _first_cause(error)
            if isinstance(cause, ReaderGone):
                return ExitStatus.OK  # as after other commands, so that `| head` works
            raise _explained(cause, stage) from error
        finally:
            if keep:
                page.heading("The folder with the policy, the counters and the audit log is still there")
                page.verbatim(str(stage.folder))


async def _tell_until_signal(page: Page, stage: Stage) -> int:
    """Tell the story. A signal ends it and every process that it started."""
    if sys.platform == "win32":  # Windows has no such signals
        with anyio.fail_after(_STORY_TIMEOUT_S):
            await _tell(page, stage)
        return 0
    received = 0
    story = anyio.CancelScope()

    async def watch(*, task_status: anyio.abc.TaskStatus[None]) -> None:
        nonlocal received
        with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals:
            task_status.started()
            async for number in signals:
                # Keep listening, so that a second Ctrl-C does not interrupt the end of the processes
                received = received or number
                story.cancel()

    async with anyio.create_task_group() as watching:
        await watching.start(watch)
        with story, anyio.fail_after(_STORY_TIMEOUT_S):
            await _tell(page, stage)
        watching.cancel_scope.cancel()
    return 128 + received if received else 0


async def _tell(page: Page, stage: Stage) -> None:
    page.title("mcpguard demo: an agent loops")
    page.heading("The policy")
    page.verbatim(POLICY)
    page.heading("Each user's client starts the CRM server behind mcpguard")
    for person in (ALICE, BOB, CAROL):
        page.verbatim(_command_line(person))
    async with _connected(stage, ALICE, BOB, CAROL) as (alice, bob, carol):
        tallies = await _act(page, alice, bob, carol)
        stage.check(tallies)
        _show(page, stage, tallies)
        await beyond.play(page, stage, alice, bob, carol)
    # When mcpguard has ended, all rows are in the audit log
    page.heading(f"The last denials in the audit log: mcpguard audit tail -n {AUDIT_ROWS} --denied")
    page.verbatim(await stage.audit_tail(AUDIT_ROWS, page.width), indent="")
    page.heading("Next: put mcpguard in front of your own servers")
    page.verbatim("mcpguard install --dry-run   shows what it would change in your clients' files")
    page.verbatim("mcpguard install")


def _show(page: Page, stage: Stage, tallies: Sequence[Tally]) -> None:
    """Show the results of the calls, Alice's loop first."""
    page.heading("What happened")
    page.table(*_summary(tallies, stage))
    loop = tallies[0]
    page.say("")
    page.say(
        f"Of Alice's {loop.made:,} searches, {stage.reached(loop):,} reached the server and "
        f"{loop.denied.total():,} were denied."
    )
    if loop.first_denial:
        page.heading("What Alice's client received for the first call over the limit")
        page.denial(loop.first_denial.code, loop.first_denial.message, loop.first_denial.data)


async def _act(page: Page, alice: Client, bob: Client, carol: Client) -> list[Tally]:
    """Make all calls, and return their results, Alice's loop first."""
    loop, searches, subagent = (Tally(person, "search_customers") for person in (ALICE, BOB, CAROL))
    bob_reports, alice_reports = (Tally(person, "generate_report") for person in (BOB, ALICE))
    page.heading(f"Alice's agent is caught in a loop: {LOOP_CALLS:,} searches, while Bob makes {BOB_CALLS}")
    with page.progress("Alice's loop", LOOP_CALLS, every=LOOP_CALLS // 3) as show:
        async with anyio.create_task_group() as together:
            turns = [anyio.Event() for _ in range(BOB_CALLS)]
            together.start_soon(_search_in_turn, bob, searches, turns)
            for done in range(LOOP_CALLS):
                if done % (LOOP_CALLS // BOB_CALLS) == 0:
                    turns[done * BOB_CALLS // LOOP_CALLS].set()
                await loop.call(alice, query="solar")
                show(done + 1, f"{loop.answered} answered, {loop.denied.total():,} denied")
    page.say(
        f"Bob's {searches.made} searches during the loop: {searches.answered} answered, "
        f"{searches.denied.total()} denied; {median(searches.took_s) * 1000:.0f} ms each (median)."
    )
    for _ in range(SUBAGENT_CALLS):
        await subagent.call(carol, query="enterprise")
    for tally, client, calls in ((bob_reports, bob, BOB_REPORTS), (alice_reports, alice, ALICE_REPORTS)):
        for _ in range(calls):
            await tally.call(client, month="2026-09")
    return [loop, searches, subagent, bob_reports, alice_reports]


async def _search_in_turn(client: Client, tally: Tally, turns: Sequence[anyio.Event]) -> None:
    """Search once at each turn. The turns follow the progress of the loop, not the clock."""
    for turn in turns:
        await turn.wait()
        await tally.call(client, query="lagos")


@asynccontextmanager
async def _connected(stage: Stage, *people: Person) -> AsyncIterator[list[Client]]:
    """Connect the client of each user."""
    if not people:
        yield []
        return
    async with stage.connect(people[0]) as client, _connected(stage, *people[1:]) as others:
        yield [client, *others]


def _summary(tallies: Sequence[Tally], stage: Stage) -> tuple[list[str], list[list[str]], int]:
    """The table of all calls: its header, its rows, and the number of columns that hold words."""
    header = ["who", "tool", "calls", "reached", "denied by user", "by tool", "by agent"]
    rows = []
    for tally in tallies:
        denied = [f"{tally.denied[axis]:,}" if tally.denied[axis] else "-" for axis in ("user", "tool", "agent")]
        rows.append([tally.person.name, tally.tool, f"{tally.made:,}", f"{stage.reached(tally):,}", *denied])
    return header, rows, 2


def _command_line(person: Person) -> str:
    options = " ".join(f'"{option}"' if " " in option else option for option in person.options)
    line = f"mcpguard run --server crm {options} -- python -m mcpguard.demo.crm"
    return line if len(line) < 78 else line.replace(" -- ", " \\\n    -- ").replace(" --agent", " \\\n    --agent")


def _first_cause(error: Exception) -> Exception:
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return error


def _explained(error: Exception, stage: Stage) -> Exception:
    """The error to show the user. An error of the demo, and a bug, are returned unchanged."""
    if not isinstance(error, MCPError | OSError | anyio.BrokenResourceError):
        return error
    reason = "it took too long" if isinstance(error, TimeoutError) else str(error)
    said = last_line(stage.stderr.read_text("utf-8", "replace")) if stage.stderr.exists() else ""
    return McpguardError(f"the demo failed: {reason}", said)
