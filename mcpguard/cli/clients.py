"""`mcpguard clients`: which clients are found, and which of their servers run behind mcpguard."""

import json
import os
import shlex
from collections.abc import Iterator
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import click

from mcpguard import config, run_options
from mcpguard.cli._clients import project_folder, project_option
from mcpguard.cli._command import Command
from mcpguard.cli._text import new_table, paragraph, tolerant_output
from mcpguard.clients.discovery import Fault, Machine, Source, entries_of, read, sources
from mcpguard.clients.entries import Entry
from mcpguard.clients.launcher import find, may_vary, version_of
from mcpguard.core.patterns import glob
from mcpguard.core.redaction import redacted
from mcpguard.core.text import plural, printable
from mcpguard.errors import McpguardError
from mcpguard.policy_file import load


class Row(NamedTuple):
    """A server, or a file that cannot be read.

    Attributes:
        source: The file, and the client that reads it.
        server: The server's name; None for a file that cannot be read.
        command: The server's own command; empty if it has none.
        mcpguard: The mcpguard that starts it; None if it is not guarded.
        version: The version of that mcpguard; None if it does not say.
        limits: How many rules can match the server's calls, or why none can: `4 rules`. Empty if it is not guarded.
        note: What is wrong, or why it cannot be guarded; empty for the usual.
    """

    source: Source
    server: str | None
    command: tuple[str, ...] = ()
    mcpguard: str | None = None
    version: str | None = None
    limits: str = ""
    note: str = ""

    @property
    def state(self) -> str:
        """Whether the server is guarded, in a few words."""
        if self.mcpguard is None:
            return self.note or "not guarded"
        by = f"mcpguard {self.version}" if self.version else self.mcpguard
        return f"guarded by {by}{f', which is {self.note}' if self.note else ''}"

    def as_json(self) -> dict[str, object]:
        """The row as an object. Members that do not apply are null."""
        return {
            "client": self.source.client.key,
            "file": str(self.source.file),
            "scope": self.source.scope,
            "project": self.source.project or None,
            "server": self.server,
            "command": list(self.command) or None,
            "guarded": self.mcpguard is not None,
            "mcpguard": self.mcpguard,
            "version": self.version,
            "limits": self.limits or None,
            "note": self.note or None,
        }


@click.command("clients", Command)
@project_option
@click.option("--json", "as_json", is_flag=True, help="Print a list with an object for each server.")
def command(project: str | None, as_json: bool) -> None:
    """List the clients on this machine and their servers: which are guarded, by which mcpguard, with how many rules.

    A file that cannot be read is listed with its fault. The version of a mcpguard comes from that program, which is run.

    \b
    Examples:
      mcpguard clients
      mcpguard clients --project . --json
    """
    tolerant_output()
    folder = project_folder(project)
    rows = [row for source in sources(Machine.this(), project=folder) for row in _rows(source)]
    if as_json:
        click.echo(json.dumps([row.as_json() for row in rows], indent=2))
        return
    if not rows:
        click.echo("no client with servers is found")
    terminal = click.get_text_stream("stdout").isatty()
    for place, group in groupby(rows, lambda row: row.source.place):
        if terminal:
            _print_table(place, list(group))
        else:
            _print_plain(place, list(group))


def _rows(source: Source) -> Iterator[Row]:
    try:
        found = entries_of(source, read(source.file))
    except Fault as fault:
        yield Row(source, None, note=fault.message)
        return
    for entry in found:
        yield _guarded(source, entry) if entry.guard else Row(source, entry.name, entry.words, note=_note(entry))


def _note(entry: Entry) -> str:
    return {"stdio": "", "faulty": entry.detail}.get(entry.kind, entry.kind)  # a URL may hold a key


def _guarded(source: Source, entry: Entry) -> Row:
    assert entry.guard  # noqa: S101 - see the caller
    program = entry.guard[0]
    found = None if may_vary(program) else find(program, os.environ)
    note = "" if found or may_vary(program) else "missing"
    version = _version(found) if found and not _is_in_project(found, source) else None
    if entry.kind != "stdio" and not note:
        note = _note(entry)
    return Row(source, entry.name, entry.words[len(entry.guard) :], program, version, _limits(entry), note)


@cache
def _version(program: Path) -> str | None:
    return version_of(program)


def _is_in_project(program: Path, source: Source) -> bool:
    """Whether a program may have come with a project's files. It is not run then: the project may be somebody else's."""
    return source.scope == "project" and source.file.parent in program.parents


def _limits(entry: Entry) -> str:
    """How many rules can match the calls of a guarded server."""
    options = run_options.parse([*(entry.guard or ())[1:], "command"])
    if options is None:
        return "its options are not valid"
    rules = _patterns(options["policy"], options["config"])
    if isinstance(rules, str):
        return rules
    server = options["server"]
    return plural(sum(server is None or glob(pattern, server) for pattern in rules), "rule")


@cache
def _patterns(policy: str | None, file: str | None) -> list[str] | str:
    """The server pattern of each rule of a policy; or why there is no policy."""
    try:
        settings = config.load(os.environ, policy=policy, config=file)
        found, _ = load(settings.policy, named=settings.policy_named)
    except McpguardError:
        return "its policy is not valid"
    return [rule.selectors.get("server", ("*",))[0] for rule in found.rules]


def _shown(row: Row) -> str:
    return printable(redacted(shlex.join(row.command)))


def _print_plain(place: str, rows: list[Row]) -> None:
    click.echo(printable(place))
    for row in rows:
        limits = f", {row.limits}" if row.limits else ""
        command = f": {_shown(row)}" if row.command else ""
        paragraph(f"  {row.server}: {row.state}{limits}{command}" if row.server is not None else f"  {row.note}")


def _print_table(place: str, rows: list[Row]) -> None:
    from rich.text import Text

    console, table = new_table()
    console.print(Text(printable(place), style="bold"))
    cells: list[Any] = []
    for row in rows:
        style = "red" if row.note == "missing" or row.server is None else "green" if row.mcpguard else ""
        cells = [Text(printable(row.server or "")), Text(printable(row.state), style=style), row.limits, Text(_shown(row))]
        table.add_row(*cells)
    table.show_header = False
    console.print(table)
