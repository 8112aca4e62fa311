"""Checks the files of clients, and finds a server in them."""

import os
import re
import shlex
from collections.abc import Iterator, Mapping

from mcpguard.clients.catalog import BY_KEY, CLIENTS
from mcpguard.clients.discovery import Machine, readable_entries, sources
from mcpguard.clients.entries import Entry
from mcpguard.clients.guards import Guards
from mcpguard.doctor.check import Check
from mcpguard.doctor.client_files import Files
from mcpguard.errors import ConfigError, UsageError
from mcpguard.light_typing import Final, NamedTuple
from mcpguard.text.masking import masked_words

_FILL_NOTHING: Final = ("claude-desktop", "codex", "zed", "goose")
"""The clients that pass `${A}` on as it is, for example to a shell."""

_VARIABLE: Final = re.compile(r"\$\{[^}]*\}|\{env:\w+\}")


class Command(NamedTuple):
    """How a client starts a server.

    Attributes:
        words: The command and its arguments, those of mcpguard included.
        env: The variables that the client sets for it.
        cwd: The folder in which it starts; empty for the working folder.
        is_guarded: Whether it starts through mcpguard.
    """

    words: tuple[str, ...]
    env: dict[str, str]
    cwd: str
    is_guarded: bool


_Start = tuple[tuple[str, ...], frozenset[tuple[str, str]], str]
"""A server's own command, its variables and its folder."""


def checks(*, allow_unguarded: bool = False) -> Iterator[Check]:
    """Check the files of the account's clients, and those of the project in the working folder; count the guarded servers.

    Args:
        allow_unguarded: Whether a server may be unguarded.
    """
    try:
        machine = Machine.this()
    except ConfigError:
        return  # without a home folder there are no clients
    files = Files(machine)
    yield from dict.fromkeys([*files.checks(), *(files.checks(machine.project) if machine.project else ())])
    yield files.total(allow_unguarded=allow_unguarded)


def command_of(server: str, environ: Mapping[str, str], client: str | None = None, *, command: str = "doctor") -> Command:
    """How the clients on this machine start a server. No command of a project's file is given: it may be somebody else's.

    Args:
        server: The server's name in the clients' files.
        environ: The environment.
        client: The client; None for any client.
        command: The command of mcpguard that starts it, for hints.

    Raises:
        UsageError: No client has the server, they start it differently, the client fills in a variable, or other accounts may
            change the mcpguard that it starts.
    """
    machine = Machine.this()
    clients = [BY_KEY[client]] if client else CLIENTS
    here = sources(machine, clients, machine.project) if machine.project else []
    files = (*sources(machine, clients), *here)
    known = [(source, entry) for source in files for entry in readable_entries(source) if entry.words]
    found = [one for one in known if one[1].name == server]
    found = [one for one in found if one[1].kind != "disabled"] or found
    found = [one for one in found if not one[0].project or one[0] in here] or found  # without those of other projects
    words = f"mcpguard {command} --server {shlex.quote(server)} --"
    again = f"give its command: {words} COMMAND"
    if not found:
        who = BY_KEY[client].title if client else "no client"
        names = " ".join(sorted({entry.name for _, entry in known}))
        text = f"--server: {who} has {'no' if client else 'a'} server {server} with a command"
        raise UsageError(text, f"use one of: {names}" if names else again)
    if len({_own(entry) for _, entry in found}) > 1:
        titles = {source.client.key: source.client.title for source, _ in found}
        start = f"{', '.join(titles.values())} {'start' if len(titles) > 1 else 'starts'}"
        hint = f"name one with --client: {' '.join(titles)}" if len(titles) > 1 else again
        raise UsageError(f"--server: {start} {server} with different commands, folders or variables", hint)
    chosen = [one for one in found if not one[0].folder]
    if not chosen:
        shown = shlex.join(masked_words(_own(found[0][1])[0]))
        raise UsageError(
            f"--server: {found[0][0].file} is a project's file, and {command} starts nothing that it names",
            f"if you trust it, give its command: {words} {shown}",
        )
    source, entry = next((one for one in chosen if one[1].guard), chosen[0])
    if entry.guard and (guard := Guards(environ).of_entry(source, entry.guard[0])).state == "unsafe":
        raise UsageError(f"--server: {server}: {guard.fault}", again)
    if entry.env_file:
        raise UsageError(f"--server: only the client reads the variables of {server} from {entry.env_file}", again)
    texts = (*entry.words, *entry.env.values(), entry.cwd) if source.client.key not in _FILL_NOTHING else ()
    if unknown := [name for text in texts for name in _VARIABLE.findall(text)]:
        raise UsageError(f"--server: only the client can fill in {' '.join(dict.fromkeys(unknown))} for {server}", again)
    cwd = entry.cwd or (source.project if os.path.isdir(source.project) else "")  # noqa: PTH112 - `Path.is_dir` raises
    return Command(entry.words, dict(entry.env), cwd, entry.guard is not None)


def _own(entry: Entry) -> _Start:
    return entry.words[len(entry.guard or ()) :], frozenset(entry.env.items()), entry.cwd
