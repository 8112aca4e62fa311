"""The demo's story: Alice's agent loops, and Bob's calls are not affected.

The demo starts real `mcpguard run` processes with the bundled CRM server behind them, and calls them through the MCP SDK's
client. Only the users and the names of their clients are made up. On a terminal it has colours; in a pipe it is
plain text of at most 80 columns.
"""

import json
import os
import signal
import sys
import textwrap
from collections.abc import Sequence
from contextlib import AsyncExitStack
from functools import partial
from statistics import median
from typing import Final, NoReturn

import anyio
from mcp import Client, MCPError
from rich.console import Console
from rich.text import Text

from mcpguard.demo.stage import ALICE, BOB, CAROL, Person, Stage, Tally, last_line, temporary_stage
from mcpguard.errors import ExitStatus, McpguardError

POLICY: Final = """\
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

# Five reports a minute, by everybody together.
[[rule]]
tool  = "generate_report"
limit = "5/1m"

# The Explore subagent of Claude Code: 20 calls an hour, whatever it calls.
[[rule]]
agent = "Claude Code::subagent::Explore"
limit = "20/1h"
"""

LOOP_CALLS: Final = 3_000
BOB_CALLS: Final = 10
SUBAGENT_CALLS: Final = 30
BOB_REPORTS: Final = 2
ALICE_REPORTS: Final = 4
AUDIT_ROWS: Final = 8
WIDTH: Final = 80

_STORY_TIMEOUT_S: Final = 120.0
"""The story takes some seconds. After this time the demo gives up."""

_ROW: Final = "  {:5}  {:16}  {:>5}  {:>7}  {:>14}  {:>7}  {:>8}"


class ReaderGone(Exception):
    """The reader of stdout has gone away."""


class Page(Console):
    """Prints the demo. Every method raises `ReaderGone` if stdout is a pipe that nobody reads."""

    def __init__(self) -> None:
        terminal = sys.stdout.isatty()
        width = min(Console().width, WIDTH) if terminal else WIDTH
        # In a pipe neither COLUMNS nor FORCE_COLOR changes the text
        super().__init__(width=width, force_terminal=None if terminal else False, highlight=False)

    def on_broken_pipe(self) -> NoReturn:
        """Let the interpreter, which flushes the buffer at exit, write to nothing."""
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise ReaderGone

    def heading(self, text: str) -> None:
        """Print the first line of a section."""
        self.print()
        self.print(Text(text, style="bold cyan"))

    def verbatim(self, text: str, indent: str = "  ") -> None:
        """Print the content of a file or the output of a command, without wrapping lines."""
        for line in text.splitlines():
            self.print(Text((indent + line).rstrip(), style="dim" if line.lstrip().startswith("#") else ""), soft_wrap=True)


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
    with temporary_stage(POLICY, keep=keep) as stage:
        try:
            return anyio.run(_tell_until_signal, page, stage)
        except Exception as error:
            cause = error
            while isinstance(cause, ExceptionGroup):
                cause = cause.exceptions[0]
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
    page.print(Text("mcpguard demo: an agent loops", style="bold"))
    page.heading("The policy")
    page.verbatim(POLICY)
    page.heading("Each user's client starts the CRM server behind mcpguard")
    for person in (ALICE, BOB, CAROL):
        page.verbatim(_command_line(person))
    async with AsyncExitStack() as connected:
        alice, bob, carol = [await connected.enter_async_context(stage.connect(one)) for one in (ALICE, BOB, CAROL)]
        tallies = await _act(page, alice, bob, carol)
        _show(page, stage, tallies)
    # When mcpguard has ended, all rows are in the audit log
    page.heading(f"The last denials in the audit log: mcpguard audit tail -n {AUDIT_ROWS} --denied")
    page.verbatim(await stage.audit_tail(AUDIT_ROWS, page.width), indent="")
    page.heading("Next: put mcpguard in front of your own servers")
    page.verbatim("mcpguard install --dry-run   shows what it would change in your clients' files")
    page.verbatim("mcpguard install")


async def _act(page: Page, alice: Client, bob: Client, carol: Client) -> list[Tally]:
    """Make all calls, and return their results, Alice's loop first."""
    loop, searches, subagent = (Tally(person, "search_customers") for person in (ALICE, BOB, CAROL))
    bob_reports, alice_reports = (Tally(person, "generate_report") for person in (BOB, ALICE))
    page.heading(f"Alice's agent is caught in a loop: {LOOP_CALLS:,} searches, while Bob makes {BOB_CALLS}")
    async with anyio.create_task_group() as together:
        for done in range(LOOP_CALLS):
            if done % (LOOP_CALLS // BOB_CALLS) == 0:
                together.start_soon(partial(searches.call, bob, query="lagos"))
            await loop.call(alice, query="solar")
    took_ms = median(searches.took_s) * 1000
    page.print(
        f"Bob's {searches.made} searches during the loop: {searches.answered} answered, "
        f"{searches.denied.total()} denied; {took_ms:.0f} ms each (median)."
    )
    for _ in range(SUBAGENT_CALLS):
        await subagent.call(carol, query="enterprise")
    for tally, client, calls in ((bob_reports, bob, BOB_REPORTS), (alice_reports, alice, ALICE_REPORTS)):
        for _ in range(calls):
            await tally.call(client, month="2026-09")
    return [loop, searches, subagent, bob_reports, alice_reports]


def _show(page: Page, stage: Stage, tallies: Sequence[Tally]) -> None:
    """Show the results of the calls, Alice's loop first."""
    page.heading("What happened")
    page.print(Text(_ROW.format("who", "tool", "calls", "reached", "denied by user", "by tool", "by agent"), style="dim"))
    for tally in tallies:
        denied = [f"{tally.denied[axis]:,}" if tally.denied[axis] else "-" for axis in ("user", "tool", "agent")]
        row = _ROW.format(tally.person.name, tally.tool, f"{tally.made:,}", f"{stage.reached(tally):,}", *denied)
        page.print(Text(row), soft_wrap=True)
    loop = tallies[0]
    page.print(
        f"\nOf Alice's {loop.made:,} searches, {stage.reached(loop):,} reached the server and "
        f"{loop.denied.total():,} were denied."
    )
    if loop.first_denial:
        page.heading("What Alice's client received for the first call over the limit")
        page.verbatim(f"code     {loop.first_denial.code}")
        message = textwrap.fill(
            loop.first_denial.message, page.width - 2, initial_indent="message  ", subsequent_indent=" " * 9
        )
        page.verbatim(message)
        page.verbatim("data")
        page.verbatim(json.dumps(loop.first_denial.data, indent=2, ensure_ascii=False), indent="    ")


def _command_line(person: Person) -> str:
    options = " ".join(f'"{option}"' if " " in option else option for option in person.options)
    line = f"mcpguard run --server crm {options} -- python -m mcpguard.demo.crm"
    return line if len(line) < 78 else line.replace(" -- ", " \\\n    -- ").replace(" --agent", " \\\n    --agent")


def _explained(error: Exception, stage: Stage) -> Exception:
    """The error to show the user. An error of the demo, and a bug, are returned unchanged."""
    if not isinstance(error, MCPError | OSError | anyio.BrokenResourceError):
        return error
    reason = "it took too long" if isinstance(error, TimeoutError) else str(error)
    said = last_line(stage.stderr.read_text("utf-8", "replace")) if stage.stderr.exists() else ""
    return McpguardError(f"the demo failed: {reason}", said)
