"""Checks the files of clients, and their hooks, and counts the servers that are guarded."""

import os
import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from mcpguard import __version__, run_options
from mcpguard.clients.catalog import CLIENTS, Client
from mcpguard.clients.discovery import Fault, Machine, Source, entries_of, hook_file, read, sources
from mcpguard.clients.entries import Entry
from mcpguard.clients.guards import Guard, Guards
from mcpguard.clients.hooks import commands_in, guard_of
from mcpguard.clients.installing import starts_mcpguard
from mcpguard.doctor.check import Check, advice, failed, good
from mcpguard.text.printing import plural

_MEND: Final = "mcpguard install"
_GUARDED, _UNGUARDED, _UNCHECKED = "guarded", "not guarded", "not checked"
_COUNTED: Final = (_GUARDED, _UNGUARDED, _UNCHECKED)
"""What a stdio server can be that a client starts on this machine. Another server is not counted, and its kind is told."""


class Files:
    """The files of an account's clients.

    Args:
        machine: The account.
    """

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._guards = Guards(machine.environ)
        self._found = False  # whether there is a file of a client
        self._states: dict[tuple[str, tuple[str, ...], str], str] = {}  # clients share files, and passes have files in common
        self._mends: dict[str, None] = {}  # the commands that guard what is not guarded

    def checks(self, project: Path | None = None) -> Iterator[Check]:
        """Check each client's file and hook. A client that is not found has no check.

        Args:
            project: Check the files of this project instead of the account's.
        """
        found = sources(self._machine, project=project)
        self._found = self._found or bool(found)
        for source in found:
            yield from self._file(source)
        named = {source.client.key for source in found}
        for client in CLIENTS:
            if client.key in named and client.hook:
                yield from self._hook(client, hook_file(self._machine, client.hook, project), project)

    def total(self) -> Check:
        """How many of the servers in all files that were checked are guarded. It fails if none is, though some could be."""
        if not self._found:
            hint = "add a server in a client, then run mcpguard install; mcpguard install --help names the clients"
            return advice("clients", "no client with servers is found on this machine", hint)
        states = list(self._states.values())
        text = _counted(states)
        if _UNGUARDED in states:
            result = advice if _GUARDED in states else failed
            return result("servers guarded", text, "; ".join(self._mends) or "correct the entries that failed a check")
        return good("servers guarded", text)

    def _file(self, source: Source) -> Iterator[Check]:
        name = source.place
        try:
            found = entries_of(source, read(source.file))
        except Fault as fault:
            yield failed(name, fault.message, fault.hint or "correct the file")
            return
        guards = {entry.guard[0]: self._guards.of_entry(source, entry.guard[0]) for entry in found if entry.guard}
        states: dict[str, str] = {}
        for entry in found:
            guard = guards[entry.guard[0]] if entry.guard else None
            states[entry.name] = self._states[_key(source, entry)] = _state(entry, guard)
        are_ok = True
        for program, guard in guards.items():
            servers = ", ".join(entry.name for entry in found if entry.guard and entry.guard[0] == program)
            look = "run mcpguard doctor in the container" if source.is_of_container else self._instead
            for check in self._guard(name, servers, guard, _mend(source), look):
                are_ok = are_ok and check.ok
                yield check
        for entry in found:
            if entry.guard and run_options.parse([*entry.guard[1:], "command"]) is None:
                are_ok = False
                yield failed(
                    name, f"{entry.name}: mcpguard run does not accept its options", "compare them with mcpguard run --help"
                )
        text = _counted(list(states.values()), [server for server, state in states.items() if state == _UNGUARDED])
        if any(entry.guard is None and states[entry.name] == _UNGUARDED for entry in found):
            self._mends[f"{_MEND}{_option(source.folder)}"] = None
            yield advice(name, text, _mend(source))
        elif found and are_ok:
            yield good(name, text)

    def _guard(self, name: str, what: str, guard: Guard, mend: str, look: str) -> Iterator[Check]:
        """What is wrong with the mcpguard of some entries or of a hook; nothing if all is well.

        Args:
            name: The check.
            what: The servers, or the hook.
            guard: Their mcpguard.
            mend: The command that mends a mcpguard that is gone.
            look: What to do if the mcpguard cannot be examined from here.
        """
        if guard.is_gone:
            yield failed(name, f"{what}: {guard.fault}", mend)
        elif guard.state == "unsafe":
            yield failed(name, f"{what}: {guard.fault}", self._instead)
        elif guard.state == "unseen":
            yield advice(name, f"{what}: {guard.fault}", look)
        elif guard.file and guard.version is None:
            yield advice(name, f"{what}: {guard.file}, version unknown", f"if it is not {__version__}, {self._instead}")
        elif guard.file and guard.version != __version__:
            told = f"{what}: {guard.file} is mcpguard {guard.version}; this is {__version__}"
            yield failed(name, told, f"upgrade it, or {self._instead}")

    def _hook(self, client: Client, file: Path, project: Path | None) -> Iterator[Check]:
        assert client.hook  # noqa: S101 - see the caller
        name = f"{client.title} (hook), {file}"
        try:
            commands = commands_in(file, client.hook)
        except Fault as fault:
            yield failed(name, fault.message, fault.hint or "correct the file")
            return
        mend = f"{_MEND} {client.key}{_option(project)} --hook"
        for command in commands:
            guard = guard_of(command, self._guards, project)
            found = list(self._guard(name, command, guard, mend, "remove the hook from the file, if you do not know it"))
            yield from found or [good(name, command)]

    @property
    def _instead(self) -> str:
        """What to do about a mcpguard. `uninstall` would remove options and hooks with it."""
        return f"write {self._guards.own or 'the path of an installed mcpguard'} in its place in the file"


def _key(source: Source, entry: Entry) -> tuple[str, tuple[str, ...], str]:
    return os.path.realpath(source.file), source.layout.path, entry.name


def _state(entry: Entry, guard: Guard | None) -> str:
    """What a server is: one of `_COUNTED`, or its kind."""
    if entry.kind != "stdio" and not entry.may_start:
        return entry.kind
    if guard is not None:
        return _GUARDED if guard.holds else _UNCHECKED if guard.state == "unseen" else _UNGUARDED
    return _UNCHECKED if starts_mcpguard(entry) else _UNGUARDED


def _counted(states: Sequence[str], names: Sequence[str] = ()) -> str:
    """How many servers are guarded, and how many are not checked or not counted.

    Args:
        states: What each server is.
        names: Those that are not guarded, if they are told.
    """
    counts = Counter(states)
    servers = sum(counts[state] for state in _COUNTED)
    parts = [f"{counts[_GUARDED]} of {plural(servers, 'server')} guarded" if servers else "no server to guard"]
    if names:
        parts.append(f"{_UNGUARDED}: {', '.join(names)}")
    if counts[_UNCHECKED]:
        parts.append(f"{_UNCHECKED}: {counts[_UNCHECKED]}")
    if others := [f"{n} {kind}" for kind, n in sorted(counts.items()) if kind not in _COUNTED]:
        parts.append(f"not counted: {', '.join(others)}")
    return "; ".join(parts)


def _mend(source: Source) -> str:
    return f"{_MEND} {source.client.key}{_option(source.folder)}"


def _option(project: Path | None) -> str:
    return f" --project {shlex.quote(str(project))}" if project else ""
