"""`mcpguard clients`: which clients are found, and which of their servers run behind mcpguard."""

import os
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from itertools import groupby
from typing import NamedTuple

import click

from mcpguard import config, run_options
from mcpguard.cli.base import Command
from mcpguard.cli.clients.changing import NO_SERVERS, project_folder, project_option
from mcpguard.cli.present import echo, echo_json, new_table, paragraph
from mcpguard.clients.discovery import Fault, Machine, Source, entries_of, read, sources
from mcpguard.clients.entries import Entry
from mcpguard.clients.guards import Guard, Guards
from mcpguard.clients.installing import OWN_COMMAND, starts_mcpguard
from mcpguard.errors import McpguardError
from mcpguard.policy.file import load
from mcpguard.text.masking import masked_words
from mcpguard.text.patterns import glob
from mcpguard.text.printing import plural, printable


class Row(NamedTuple):
    """A server, or a file that cannot be read.

    Attributes:
        source: The file, and the client that reads it.
        server: The server's name; None for a file that cannot be read.
        command: The server's own command; empty if it has none. Its secrets are masked where it is shown.
        mcpguard: The mcpguard that its entry names; None if the entry does not begin with `mcpguard run`.
        is_guarded: Whether that mcpguard guards it.
        version: The version of that mcpguard; None if it is not known.
        limits: How many rules can match the server's calls, or why none can: `4 rules`. Empty if it is not guarded.
        note: What is wrong, or why it cannot be guarded; empty for the usual.
    """

    source: Source
    server: str | None
    command: tuple[str, ...] = ()
    mcpguard: str | None = None
    is_guarded: bool = False
    version: str | None = None
    limits: str = ""
    note: str = ""

    @property
    def state(self) -> str:
        """Whether the server is guarded, in a few words."""
        if not self.is_guarded:
            return f"not guarded: {self.note}" if self.mcpguard else self.note or "not guarded"
        by = f"mcpguard {self.version}" if self.version else self.mcpguard
        return f"guarded by {by}{f' ({self.note})' if self.note else ''}"

    def as_json(self) -> dict[str, object]:
        """The row as an object. Members that do not apply are null."""
        return {
            "client": self.source.client.key,
            "file": str(self.source.file),
            "scope": self.source.scope,
            "project": self.source.project or None,
            "server": self.server,
            "command": masked_words(self.command) or None,
            "guarded": self.is_guarded,
            "mcpguard": self.mcpguard,
            "version": self.version,
            "limits": self.limits or None,
            "note": self.note or None,
        }


@click.command("clients", Command)
@project_option
@click.option("--json", "as_json", is_flag=True, help="Print a list with an object for each server.")
def clients(project: str | None, as_json: bool) -> None:
    """List the clients on this machine and their servers: which are guarded, by which mcpguard, with how many rules.

    A file that cannot be read is listed with its fault. A server is not guarded if other accounts may change the mcpguard that
    its entry names, or if only the project has it. No program that an entry names is run: its version is the one that is
    recorded beside it.

    \b
    Examples:
      mcpguard clients
      mcpguard clients --project . --json
    """
    folder = project_folder(project)
    lookup = _Lookup()
    rows = [row for source in sources(Machine.this(), project=folder) for row in _rows(source, lookup)]
    if as_json:
        echo_json([row.as_json() for row in rows], indent=2)
        return
    if not rows:
        click.echo(NO_SERVERS)
    terminal = sys.stdout.isatty()
    for place, group in groupby(rows, lambda row: row.source.place):
        if terminal:
            _print_table(place, list(group))
        else:
            _print_plain(place, list(group))


class _Lookup:
    """What several servers share, looked up once."""

    def __init__(self) -> None:
        self.content = cache(read)  # one file can have the servers of many projects
        self.guards = Guards(os.environ)
        self.server_patterns = cache(_server_patterns)


def _server_patterns(policy: str | None, file: str | None, variables: frozenset[tuple[str, str]]) -> list[str] | str:
    """The server pattern of each rule of a policy; or why there are none."""
    try:
        settings = config.load(os.environ | dict(variables), policy=policy, config=file)
    except McpguardError:
        return "its settings are not valid"
    try:
        found = load(settings.policy, named=settings.policy_named)
    except McpguardError:
        return "its policy is not valid"
    return [rule.selectors.get("server", ("*",))[0] for rule in found.rules]


def _rows(source: Source, lookup: _Lookup) -> Iterator[Row]:
    try:
        found = entries_of(source, lookup.content(source.file))
    except Fault as fault:
        yield Row(source, None, note=fault.message)
        return
    for entry in found:
        note = {"stdio": "", "faulty": entry.detail}.get(entry.kind, entry.kind)  # a URL may hold a key
        if entry.guard:
            yield _guarded(source, entry, note, lookup)
        else:
            note = OWN_COMMAND if not note and starts_mcpguard(entry) else note
            yield Row(source, entry.name, entry.words, note=note)


def _guarded(source: Source, entry: Entry, note: str, lookup: _Lookup) -> Row:
    words = entry.guard or ()
    program, command = words[0], entry.words[len(words) :]
    guard = lookup.guards.of_entry(source, program)
    limits = _limits(words, entry.env, lookup) if guard.holds else ""
    return Row(source, entry.name, command, program, guard.holds, guard.version, limits, _note(guard, note))


def _note(guard: Guard, note: str) -> str:
    """What is wrong with a guard; else `note`, or that its version is not known."""
    if guard.state == "missing":
        return "missing"
    return guard.fault or note or ("" if guard.version else "version unknown")


def _limits(guard: Sequence[str], env: Mapping[str, str], lookup: _Lookup) -> str:
    """How many rules can match the calls of a guarded server."""
    options = run_options.parse([*guard[1:], "command"])
    if options is None:
        return "its options are not valid"
    ours = frozenset((name, value) for name, value in env.items() if name.startswith("MCPGUARD_"))
    patterns = lookup.server_patterns(options["policy"], options["config"], ours)
    if isinstance(patterns, str):
        return patterns
    server = options["server"] or env.get("MCPGUARD_SERVER")
    return plural(sum(server is None or glob(pattern, server) for pattern in patterns), "rule")


def _shown(row: Row) -> str:
    return printable(shlex.join(masked_words(row.command)))


def _print_plain(place: str, rows: list[Row]) -> None:
    echo(place)
    for row in rows:
        limits = f", {row.limits}" if row.limits else ""
        command = f": {_shown(row)}" if row.command else ""
        if row.server is None:
            echo(f"  {row.note}")
        else:
            paragraph(f"  {row.server}: {row.state}{limits}{command}")


def _print_table(place: str, rows: list[Row]) -> None:
    from rich.text import Text

    console, table = new_table()
    console.print(Text(printable(place), style="bold"))
    table.show_header = False
    for _ in range(4):
        table.add_column(overflow="fold")
    for row in rows:
        if row.server is None:
            console.print(Text(printable(f"  {row.note}"), style="red"))
            continue
        is_wrong = row.note == "missing" or (row.mcpguard and not row.is_guarded)
        style = "red" if is_wrong else "green" if row.is_guarded else ""
        name = Text(printable(f"  {row.server}"))
        table.add_row(name, Text(printable(row.state), style=style), Text(row.limits), Text(_shown(row)))
    console.print(table)
