"""`mcpguard install`, `uninstall` and `clients`: the servers in clients' files; and how a command line names clients."""

import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, Final

import click
from click.shell_completion import CompletionItem

from mcpguard.cli.commands import Command
from mcpguard.cli.options import all_of
from mcpguard.cli.present import echo, echo_json, paragraph, print_table
from mcpguard.clients.catalog import BY_KEY, CLIENTS, Client
from mcpguard.clients.coverage import BY_HOOK, UNGUARDED, Coverage, counted
from mcpguard.clients.discovery import FileFault, Machine, Source, readable_entries, sources
from mcpguard.clients.guards import NamedGuard
from mcpguard.clients.installing import OWN_COMMAND
from mcpguard.errors import McpguardError, UsageError, did_you_mean
from mcpguard.files import named_path
from mcpguard.text.printing import printable
from mcpguard.text.redaction import masked_words

NO_SERVERS: Final = "no client with servers is found"


def complete_clients(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The clients that are found on this machine."""
    del ctx, param
    titles = {source.client.key: source.client.title for source in _found(None)}
    return [CompletionItem(key, help=title) for key, title in titles.items() if key.startswith(incomplete)]


def complete_servers(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The servers in the clients' files."""
    del param
    found = _found(ctx.params.get("project"))
    names = {entry.name: source.client.title for source in found for entry in readable_entries(source)}
    return [CompletionItem(name, help=title) for name, title in sorted(names.items()) if name.startswith(incomplete)]


def _found(project: str | None) -> list[Source]:
    """The files of clients; none instead of an error."""
    try:
        return sources(Machine.this(), project=project_folder(project))
    except (OSError, McpguardError):
        return []


project_option = click.option(
    "--project", metavar="DIR", help="Use the files of the project in DIR instead of your account's.", type=click.Path()
)


entry_options = all_of(
    click.option(
        "--server",
        metavar="NAME",
        shell_complete=complete_servers,
        help="The server. Without COMMAND, it is started as your client's file says.",
    ),
    click.option(
        "--client",
        metavar="CLIENT",
        shell_complete=complete_clients,
        help="The client whose file has the server, if several have one of this name.",
    ),
)
"""The options of a command that starts a server."""


def project_folder(name: str | None) -> Path | None:
    """The folder of `--project`.

    Raises:
        UsageError: There is no such folder.
        ConfigError: The working folder, to which the name is relative, no longer exists.
    """
    if name is None:
        return None
    folder = named_path(name, where="--project")
    if not os.path.isdir(folder):  # noqa: PTH112 - `Path.is_dir` raises without permission
        raise UsageError(f"--project: {name}: no such folder", "name the folder that holds the project's files")
    return folder


def named_clients(keys: Sequence[str]) -> list[Client]:
    """The clients with these keys; all clients without keys.

    Raises:
        UsageError: There is no such client.
    """
    for key in keys:
        if key not in BY_KEY:
            raise UsageError(f"no such client: {key}", did_you_mean(key.replace(" ", "-"), BY_KEY))
    return [BY_KEY[key] for key in dict.fromkeys(keys)] or list(CLIENTS)


ServerRow = dict[str, Any]
"""A server, or a file that cannot be read, as `--json` prints it. Members that do not apply are null.

`command` is the server's own command, its secrets masked; `mcpguard` the mcpguard that its entry names, if that begins with
`mcpguard run`; `guarded` tells whether that one guards it; `state` is `guarded`, `by hook`, `unguarded`, or why the server
does not count; `fix` is what would guard one that is unguarded; `plugin` is the plugin that brings it; `note` what is wrong.
"""


@click.command("clients", Command)
@project_option
@click.option("--json", "as_json", is_flag=True, help="Print a list with an object for each server.")
def clients(project: str | None, as_json: bool) -> None:
    """List the clients on this machine and their servers: which are guarded, and by which mcpguard.

    Also lists remote servers, and those of plugins, extensions and bundles. Each is guarded, by hook, or unguarded, with the
    command that would guard it. "By hook" means that the client asks mcpguard before each call.

    A file that cannot be read is listed with its fault. A server is not guarded if other accounts may change the mcpguard that
    its entry names, or if only the project has it. No program that an entry names is run: its version is the one that is
    recorded beside it.

    \b
    Examples:
      mcpguard clients
      mcpguard clients --project . --json
    """
    folder, coverage = project_folder(project), Coverage(Machine.this())
    found = [(source, row) for source in coverage.sources(folder) for row in _rows(source, coverage)]
    if as_json:
        echo_json([row for _, row in found], indent=2)
        return
    if not found:
        click.echo(NO_SERVERS)
    shown = _print_table if sys.stdout.isatty() else _print_plain
    for place, group in groupby(found, lambda one: one[0].place):
        shown(place, [row for _, row in group])
    if found:
        paragraph(counted(coverage.states()))


def _rows(source: Source, coverage: Coverage) -> Iterator[ServerRow]:
    """The servers of a file."""
    row: ServerRow = {"client": source.client.key, "file": str(source.file), "scope": source.scope}
    row |= {"project": source.project or None, "server": None, "command": None}
    row |= {"guarded": False, "mcpguard": None, "version": None, "note": None}
    row |= {"state": None, "fix": None, "plugin": source.plugin or None}
    try:
        found = coverage.servers(source)
    except FileFault as fault:
        yield row | {"note": fault.message}
        return
    for entry, guard, state, fix in found:
        note = {"stdio": "", "faulty": entry.detail}.get(entry.kind, entry.kind)  # a URL may hold a key
        one = row | {"server": entry.name, "state": state, "fix": fix or None}
        if entry.guard and guard:
            one |= {"mcpguard": entry.guard[0], "guarded": guard.holds, "version": guard.version}
            note = _note(guard, note)
        elif not note and entry.starts_mcpguard:
            note = OWN_COMMAND
        yield one | {"command": masked_words(entry.own_words) or None, "note": note or None}


def _note(guard: NamedGuard, note: str) -> str:
    """What is wrong with a guard; else `note`, or that its version is not known."""
    if guard.state == "missing":
        return "missing"
    return guard.fault or note or ("" if guard.version else "version unknown")


def _state(row: ServerRow) -> str:
    """Whether a server is guarded, in a few words."""
    note = row["note"]
    if not row["guarded"] and row["state"] in (UNGUARDED, BY_HOOK):
        told = ", ".join(filter(None, (note, row["fix"] and f"to guard it: {row['fix']}")))
        return f"{row['state']}{f' ({told})' if told else ''}"
    if not row["guarded"]:
        return f"not guarded: {note}" if row["mcpguard"] else note or row["state"]
    by = f"mcpguard {row['version']}" if row["version"] else row["mcpguard"]
    return f"guarded by {by}{f' ({note})' if note else ''}"


def _print_plain(place: str, rows: Sequence[ServerRow]) -> None:
    echo(place)
    for row in rows:
        if row["server"] is None:
            echo(f"  {row['note']}")
        else:
            command = f": {shlex.join(row['command'])}" if row["command"] else ""
            paragraph(f"  {row['server']}: {_state(row)}{command}")


def _print_table(place: str, rows: Sequence[ServerRow]) -> None:
    click.secho(printable(place), bold=True)
    cells = []
    for row in rows:
        if row["server"] is None:
            click.secho(printable(f"  {row['note']}"), fg="red")
            continue
        is_wrong = row["note"] == "missing" or (row["mcpguard"] and not row["guarded"]) or row["state"] == UNGUARDED
        style = "red" if is_wrong else "green" if row["guarded"] or row["state"] == BY_HOOK else ""
        cells.append((f"  {row['server']}", (_state(row), style), shlex.join(row["command"] or ())))
    print_table(cells, [{}] * 3)
