"""Checks the files of clients, and their hooks."""

import os
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from mcpguard import __version__, run_options
from mcpguard.clients.catalog import CLIENTS, Client
from mcpguard.clients.discovery import Fault, Machine, Source, entries_of, hook_file, read, sources
from mcpguard.clients.hooks import commands_in, is_gone
from mcpguard.clients.launcher import Launcher, find, launcher, version_of
from mcpguard.core.text import plural
from mcpguard.doctor.check import Check, failed, good
from mcpguard.errors import McpguardError

_MEND: Final = "mcpguard install"


def checks(machine: Machine, project: Path | None = None) -> Iterator[Check]:
    """Check each client's file and hook. A client that is not found has no check.

    Args:
        machine: The account.
        project: Check the files of this project instead of the account's.
    """
    try:
        this = launcher({key: value for key, value in machine.environ.items() if not key.startswith("MCPGUARD_")})
    except McpguardError:  # there is no program mcpguard in this environment
        this = None
    found = sources(machine, project=project)
    for source in found:
        yield from _file(source, this)
    named = {source.client.key for source in found}
    for client in CLIENTS:
        if client.key in named and client.hook:
            yield from _hook(client, hook_file(machine, client.hook, project), _option(project))


def _file(source: Source, this: Launcher | None) -> Iterator[Check]:
    name = source.place
    try:
        found = entries_of(source, read(source.file))
    except Fault as fault:
        yield failed(name, fault.message, fault.hint or "correct the file")
        return
    programs: dict[str, list[str]] = {}
    for entry in found:
        if entry.guard:
            programs.setdefault(entry.guard[0], []).append(entry.name)
    are_ok = True
    for program, servers in programs.items():
        if wrong := _fault(program, this, source):
            are_ok = False
            yield failed(name, f"{', '.join(servers)}: {wrong[0]}", wrong[1])
    for entry in found:
        if entry.guard and run_options.parse([*entry.guard[1:], "command"]) is None:
            are_ok = False
            yield failed(
                name, f"{entry.name}: mcpguard run does not accept its options", "compare them with mcpguard run --help"
            )
    if found and are_ok:
        guarded = sum(entry.guard is not None for entry in found)
        yield good(name, f"{guarded} of {plural(len(found), 'server')} guarded")


def _fault(program: str, this: Launcher | None, source: Source) -> tuple[str, str] | None:
    """What is wrong with the mcpguard of an entry, and a hint; None if nothing is."""
    if not source.tells_where(program):
        return None
    path = find(program, os.environ, source.start)
    if path is None:
        return f"its mcpguard is missing: {program}", f"{_MEND} {source.client.key}{_option(source.folder)}"
    if this is None or os.path.realpath(path) == os.path.realpath(this.program):
        return None
    if source.may_have_brought(path):
        return f"its mcpguard is a file of the project: {path}", "use an installed one, if you do not know this file"
    version = version_of(path)
    if version == __version__:
        return None
    instead = f"write {this.program} in its place in the file"  # `uninstall` would remove options and hooks with it
    if version is None:
        return f"{path} does not say its version", instead
    return f"{path} is mcpguard {version}; this is {__version__}", f"upgrade it, or {instead}"


def _option(project: Path | None) -> str:
    return f" --project {shlex.quote(str(project))}" if project else ""


def _hook(client: Client, file: Path, option: str) -> Iterator[Check]:
    assert client.hook  # noqa: S101 - see the caller
    name = f"{client.title} (hook), {file}"
    try:
        commands = commands_in(file, client.hook)
    except Fault as fault:
        yield failed(name, fault.message, fault.hint or "correct the file")
        return
    for command in commands:
        if is_gone(command):
            yield failed(name, f"its mcpguard is missing: {command}", f"{_MEND} {client.key}{option} --hook")
        else:
            yield good(name, command)
