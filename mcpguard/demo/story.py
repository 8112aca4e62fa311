"""The demo's story: Alice's agent loops, and Bob's calls are not affected.

The demo starts real `mcpguard run` processes with the bundled CRM server behind them, in a temporary folder, and calls them
through the MCP SDK's client. Only the users and the names of their clients are made up. On a terminal it has colours; in a
pipe it is plain text of at most 80 columns.
"""

import json
import os
import shutil
import signal
import sys
import tempfile
import textwrap
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Final, NoReturn

import anyio
from mcp import Client, Implementation, MCPError, StdioServerParameters, stdio_client
from rich.console import Console
from rich.text import Text

from mcpguard.demo.crm import CALL_LOG_VARIABLE
from mcpguard.errors import McpguardError, status_text
from mcpguard.files import no_temporary_folder
from mcpguard.policy.parse import SCHEMA_LINE
from mcpguard.policy.writing import write_policy
from mcpguard.session.denial import RATE_LIMITED

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


@dataclass(frozen=True)
class Person:
    """A user of a client.

    Args:
        name: The name in the demo's output.
        client: The client's own name (`clientInfo.name`).
        options: Options of `mcpguard run` that name the user and the agent.
    """

    name: str
    client: str
    options: Sequence[str]


ALICE: Final = Person("alice", "claude-ai", ("--user", "alice@acme.com"))
BOB: Final = Person("bob", "cursor-vscode", ("--user", "bob@acme.com"))
CAROL: Final = Person("carol", "claude-code", ("--user", "carol@acme.com", "--agent", "Claude Code::subagent::Explore"))


@dataclass
class CallResults:
    """The results of one user's calls of one tool, as the client received them.

    Args:
        person: The user.
        tool: The tool.
        denied: The number of calls that mcpguard denied, by axis.
        took_s: How long each answered call took.
        first_denial: The first denial.
    """

    person: Person
    tool: str
    denied: Counter[str] = field(default_factory=Counter)
    took_s: list[float] = field(default_factory=list)
    first_denial: MCPError | None = None

    @property
    def made(self) -> int:
        """The number of calls made."""
        return len(self.took_s) + self.denied.total()

    async def call(self, client: Client, **arguments: str) -> None:
        """Call the tool once and count the result.

        Raises:
            MCPError: The call failed, and not because of a limit.
        """
        begin = anyio.current_time()
        try:
            await client.call_tool(self.tool, arguments)
        except MCPError as error:
            if not isinstance(error.data, dict) or error.code != RATE_LIMITED:
                raise
            self.denied[str(error.data.get("axis"))] += 1
            self.first_denial = self.first_denial or error
        else:
            self.took_s.append(anyio.current_time() - begin)


@dataclass(frozen=True)
class Stage:
    """Where the demo plays.

    Attributes:
        folder: Its folder, which is the `MCPGUARD_HOME` of its processes.
        loop_calls: How many calls Alice's agent makes in its loop.
    """

    folder: Path
    loop_calls: int = LOOP_CALLS

    @property
    def stderr(self) -> Path:
        """The file for stderr of mcpguard and the servers."""
        return self.folder / "stderr.txt"

    def environment(self, **more: str) -> dict[str, str]:
        """This process's environment without the account's own mcpguard variables."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MCPGUARD_")}
        return environment | {"MCPGUARD_HOME": str(self.folder)} | more

    @asynccontextmanager
    async def connect(self, person: Person) -> AsyncIterator[Client]:
        """Start `mcpguard run` and a server behind it, as the user's client would.

        Yields:
            The connected client, which has listed the tools.
        """
        guard = ["-m", "mcpguard", "run", "--server", "crm", *person.options]
        command = StdioServerParameters(
            command=sys.executable,
            args=[*guard, "--", sys.executable, "-m", "mcpguard.demo.crm"],
            env=self.environment(**{CALL_LOG_VARIABLE: str(self._log_of(person))}),
        )
        info = Implementation(name=person.client, version="1.0")
        with self.stderr.open("a", encoding="utf-8") as errlog:
            transport = stdio_client(command, errlog=errlog)
            async with Client(transport, client_info=info) as client:
                await client.list_tools()
                yield client

    def reached(self, tally: CallResults) -> int:
        """The number of calls that reached the server: see `crm`."""
        log = self._log_of(tally.person)
        return log.read_text("utf-8").splitlines().count(tally.tool) if log.exists() else 0

    async def audit_tail(self, width: int) -> str:
        """The last denials in the audit log, as `mcpguard audit tail` prints them.

        Raises:
            McpguardError: The command failed.
        """
        command = [sys.executable, "-m", "mcpguard", "audit", "tail", "-n", str(AUDIT_ROWS), "--denied", "--table"]
        done = await anyio.run_process(command, env=self.environment(COLUMNS=str(width)), check=False)
        if done.returncode != 0:
            reason = last_line(done.stderr.decode(errors="replace"))
            raise McpguardError(f"the demo failed: mcpguard audit tail ended with {status_text(done.returncode)}", reason)
        return done.stdout.decode()

    def _log_of(self, person: Person) -> Path:
        return self.folder / f"calls-{person.name}"


def last_line(text: str) -> str:
    """The last line of a text that is not blank and not a hint; empty if there is none."""
    lines = (line.strip() for line in reversed(text.splitlines()))
    return next((line for line in lines if line and not line.startswith("hint: ")), "")


class Page(Console):
    """Prints the demo. If stdout is a pipe that nobody reads, each method raises `BrokenPipeError`."""

    def __init__(self) -> None:
        terminal = sys.stdout.isatty()
        width = min(Console().width, WIDTH) if terminal else WIDTH
        # In a pipe neither COLUMNS nor FORCE_COLOR changes the text
        super().__init__(width=width, force_terminal=None if terminal else False, highlight=False)

    def on_broken_pipe(self) -> NoReturn:
        """The command line ends the program, as after other commands."""
        raise

    def heading(self, text: str) -> None:
        """Print the first line of a section."""
        self.print()
        self.print(Text(text, style="bold cyan"))

    def verbatim(self, text: str, indent: str = "  ") -> None:
        """Print the content of a file or the output of a command, without wrapping lines."""
        for line in text.splitlines():
            self.print(Text((indent + line).rstrip(), style="dim" if line.lstrip().startswith("#") else ""), soft_wrap=True)


def run_demo(*, keep: bool, loop_calls: int) -> int:
    """Run the demo in a new folder that only this account can read, and print it to stdout.

    Args:
        keep: Whether the temporary folder stays, and its path is printed.
        loop_calls: How many calls Alice's agent makes in its loop.

    Returns:
        The exit status: 0; 128 + n after signal n (130 for Ctrl-C).

    Raises:
        BrokenPipeError: The reader of stdout has gone away.
        McpguardError: The demo failed.
    """
    page = Page()
    try:
        stage = Stage(Path(tempfile.mkdtemp(prefix="mcpguard-demo-")), loop_calls)
    except OSError as error:
        raise no_temporary_folder(error) from error
    try:
        write_policy(stage.folder / "policy.toml", (SCHEMA_LINE + POLICY).encode())
        return anyio.run(_tell_until_signal, page, stage)
    except Exception as error:
        cause = error
        while isinstance(cause, ExceptionGroup):
            cause = cause.exceptions[0]
        raise _explained(cause, stage) from error
    finally:
        if keep:
            page.heading("The folder with the policy, the counters and the audit log is still there")
            page.verbatim(str(stage.folder))
        else:
            shutil.rmtree(stage.folder, ignore_errors=True)


async def _tell_until_signal(page: Page, stage: Stage) -> int:
    """Tell the story. A signal ends it and every process that it started."""
    if sys.platform == "win32":  # Windows has no such signals
        await _tell(page, stage)
        return 0
    # Open until the processes have ended, so that a second Ctrl-C does not interrupt that
    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals:
        async with anyio.create_task_group() as group:

            async def tell() -> None:
                await _tell(page, stage)
                group.cancel_scope.cancel()

            group.start_soon(tell)
            async for number in signals:
                group.cancel_scope.cancel()
                return 128 + number
    return 0


async def _tell(page: Page, stage: Stage) -> None:
    with anyio.fail_after(_STORY_TIMEOUT_S):
        page.print(Text("mcpguard demo: an agent loops", style="bold"))
        page.heading("The policy")
        page.verbatim(POLICY)
        page.heading("Each user's client starts the CRM server behind mcpguard")
        for person in (ALICE, BOB, CAROL):
            page.verbatim(_command_line(person))
        async with AsyncExitStack() as connected:
            alice, bob, carol = [await connected.enter_async_context(stage.connect(one)) for one in (ALICE, BOB, CAROL)]
            tallies = await _act(page, stage, alice, bob, carol)
            _show(page, stage, tallies)
        # When mcpguard has ended, all rows are in the audit log
        page.heading(f"The last denials in the audit log: mcpguard audit tail -n {AUDIT_ROWS} --denied")
        page.verbatim(await stage.audit_tail(page.width), indent="")
        page.heading("Next: put mcpguard in front of your own servers")
        page.verbatim("mcpguard install --dry-run   shows what it would change in your clients' files")
        page.verbatim("mcpguard install")


async def _act(page: Page, stage: Stage, alice: Client, bob: Client, carol: Client) -> list[CallResults]:
    """Make all calls, and return their results, Alice's loop first."""
    loop, searches, subagent = (CallResults(person, "search_customers") for person in (ALICE, BOB, CAROL))
    bob_reports, alice_reports = (CallResults(person, "generate_report") for person in (BOB, ALICE))
    page.heading(f"Alice's agent is caught in a loop: {stage.loop_calls:,} searches, while Bob makes {BOB_CALLS}")
    async with anyio.create_task_group() as together:
        for done in range(stage.loop_calls):
            if done % (stage.loop_calls // BOB_CALLS) == 0:
                together.start_soon(partial(searches.call, bob, query="lagos"))
            await loop.call(alice, query="solar")
    page.print(
        f"Bob's {searches.made} searches during the loop: {len(searches.took_s)} answered, "
        f"{searches.denied.total()} denied; {median(searches.took_s) * 1000:.0f} ms each (median)."
    )
    for _ in range(SUBAGENT_CALLS):
        await subagent.call(carol, query="enterprise")
    for tally, client, calls in ((bob_reports, bob, BOB_REPORTS), (alice_reports, alice, ALICE_REPORTS)):
        for _ in range(calls):
            await tally.call(client, month="2026-09")
    return [loop, searches, subagent, bob_reports, alice_reports]


def _show(page: Page, stage: Stage, tallies: Sequence[CallResults]) -> None:
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
    """The error to show the user. An error of the demo, a reader that leaves, and a bug, are returned unchanged."""
    if not isinstance(error, MCPError | OSError | anyio.BrokenResourceError) or isinstance(error, BrokenPipeError):
        return error
    reason = "it took too long" if isinstance(error, TimeoutError) else str(error)
    said = last_line(stage.stderr.read_text("utf-8", "replace")) if stage.stderr.exists() else ""
    return McpguardError(f"the demo failed: {reason}", said)
