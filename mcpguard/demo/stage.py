"""The people, processes and files of the demo: `mcpguard run` with real servers, in a temporary folder."""

import os
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import anyio
from mcp import Client, Implementation, MCPError, StdioServerParameters, stdio_client

from mcpguard.demo.crm import CALL_LOG_VARIABLE
from mcpguard.errors import McpguardError, status_text
from mcpguard.files import no_temporary_folder
from mcpguard.policy.parse import SCHEMA_LINE
from mcpguard.policy.writing import write_policy
from mcpguard.session.denial import RATE_LIMITED

_CALL_TIMEOUT_S = 30.0
"""A call takes about a millisecond. After this time the demo gives up."""


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
class Tally:
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
    def answered(self) -> int:
        """The number of calls with a result."""
        return len(self.took_s)

    @property
    def made(self) -> int:
        """The number of calls made."""
        return self.answered + self.denied.total()

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
    """The demo's folder, which is the `MCPGUARD_HOME` of its processes."""

    folder: Path

    @property
    def stderr(self) -> Path:
        """The file for stderr of mcpguard and the servers."""
        return self.folder / "stderr.txt"

    def environment(self) -> dict[str, str]:
        """This process's environment without the account's own mcpguard variables."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MCPGUARD_")}
        return environment | {"MCPGUARD_HOME": str(self.folder)}

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
            env=self.environment() | {CALL_LOG_VARIABLE: str(self._log_of(person))},
        )
        info = Implementation(name=person.client, version="1.0")
        with self.stderr.open("a", encoding="utf-8") as errlog:
            transport = stdio_client(command, errlog=errlog)
            async with Client(transport, client_info=info, read_timeout_seconds=_CALL_TIMEOUT_S) as client:
                await client.list_tools()
                yield client

    def reached(self, tally: Tally) -> int:
        """The number of calls that reached the server: see `crm`."""
        log = self._log_of(tally.person)
        return log.read_text("utf-8").splitlines().count(tally.tool) if log.exists() else 0

    async def audit_tail(self, rows: int, width: int) -> str:
        """The last denials in the audit log, as `mcpguard audit tail` prints them.

        Raises:
            McpguardError: The command failed.
        """
        command = [sys.executable, "-m", "mcpguard", "audit", "tail", "-n", str(rows), "--denied", "--table"]
        done = await anyio.run_process(command, env=self.environment() | {"COLUMNS": str(width)}, check=False)
        if done.returncode != 0:
            reason = last_line(done.stderr.decode(errors="replace"))
            raise McpguardError(f"the demo failed: mcpguard audit tail ended with {status_text(done.returncode)}", reason)
        return done.stdout.decode()

    def _log_of(self, person: Person) -> Path:
        return self.folder / f"calls-{person.name}"


@contextmanager
def temporary_stage(policy: str, *, keep: bool) -> Iterator[Stage]:
    """Create a stage in a new folder that only this account can read.

    Args:
        policy: The text of its policy file.
        keep: Whether the folder stays afterwards.
    """
    try:
        folder = Path(tempfile.mkdtemp(prefix="mcpguard-demo-"))
    except OSError as error:
        raise no_temporary_folder(error) from error
    try:
        write_policy(folder / "policy.toml", (SCHEMA_LINE + policy).encode())
        yield Stage(folder)
    finally:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)


def last_line(text: str) -> str:
    """The last line of a text that is not blank and not a hint; empty if there is none."""
    lines = (line.strip() for line in reversed(text.splitlines()))
    return next((line for line in lines if line and not line.startswith("hint: ")), "")
