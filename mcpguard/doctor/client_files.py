"""Checks the files of clients, and their hooks, and counts the servers that are guarded."""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from mcpguard import __version__, run_options
from mcpguard.clients.catalog import CLIENTS, Client
from mcpguard.clients.coverage import UNGUARDED, Coverage, counted, option, why_skipped
from mcpguard.clients.discovery import Fault, Machine, Source, hook_file, read
from mcpguard.clients.guards import Guard
from mcpguard.clients.hooks import commands_in, decides, deciding, guard_of
from mcpguard.clients.launcher import is_same
from mcpguard.doctor.check import Check, advice, failed, good

_MEND: Final = "mcpguard install"
_VERSION: Final = re.compile(r"^[/A-Z].*[/\\]plugins[/\\]cache(?:[/\\][^/\\\n]+){3}", re.MULTILINE)
"""The folder of a plugin's version, which goes with an update: `install` has written it for a server that needs it."""


class Files:
    """The files of an account's clients.

    Args:
        machine: The account.
    """

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._coverage = Coverage(machine)
        self._found = False  # whether there is a file of a client
        self._mends: dict[str, None] = {}  # what guards what is not guarded

    def checks(self, project: Path | None = None) -> Iterator[Check]:
        """Check each client's file and hook. A client that is not found has no check.

        Args:
            project: Check the files of this project instead of the account's.
        """
        found = self._coverage.sources(project)
        self._found = self._found or bool(found)
        for source in found:
            yield from self._file(source)
        for client in CLIENTS:
            if client.hook:
                yield from self._hook(client, hook_file(self._machine, client.hook, project), project)

    def total(self, *, allow_unguarded: bool = False) -> Check:
        """How many of the servers in all files that were checked are guarded. It fails if one is not, unless that is meant."""
        if not self._found:
            hint = "add a server in a client, then run mcpguard install; mcpguard install --help names the clients"
            return advice("clients", "no client with servers is found on this machine", hint)
        text = counted(self._coverage.states())
        if UNGUARDED not in self._coverage.states():
            return good("servers guarded", text)
        hint = "; ".join(self._mends) or "correct the entries that failed a check"
        if allow_unguarded:
            return advice("servers guarded", text, hint)
        return failed("servers guarded", text, f"{hint}; or add --allow-unguarded if that is meant")

    def _file(self, source: Source) -> Iterator[Check]:
        name = source.place
        try:
            found = self._coverage.entries(source, read(source.file))
        except Fault as fault:
            yield failed(name, fault.message, fault.hint or "correct the file")
            return
        guards = {entry.guard[0]: self._coverage.guards.of_entry(source, entry.guard[0]) for entry in found if entry.guard}
        states = {entry.name: self._coverage.state(source, entry) for entry in found}
        are_ok = True
        for program, guard in guards.items():
            servers = ", ".join(entry.name for entry in found if entry.guard and entry.guard[0] == program)
            look = "run mcpguard doctor in the container" if source.is_of_container else self._instead
            for check in self._guard(name, servers, guard, f"{_MEND} {source.client.key}{option(source.folder)}", look):
                are_ok = are_ok and check.ok
                yield check
        for entry in found:
            if entry.guard and run_options.parse([*entry.guard[1:], "command"]) is None:
                are_ok = False
                yield failed(
                    name, f"{entry.name}: mcpguard run does not accept its options", "compare them with mcpguard run --help"
                )
        versions = _VERSION.findall("\n".join(word for entry in found for word in (*entry.words, entry.cwd)))
        for folder in dict.fromkeys(folder for folder in versions if not os.path.lexists(folder)):
            are_ok = False
            yield failed(name, f"a folder of a plugin is gone: {folder}", f"{_MEND} {source.client.key}")
        text = counted(states.values(), [server for server, state in states.items() if state == UNGUARDED])
        open_ones = [entry for entry in found if entry.guard is None and states[entry.name] == UNGUARDED]
        if fixes := list(dict.fromkeys(self._coverage.fix(source, entry) for entry in open_ones)):
            self._mends |= {
                fix.replace(f"{_MEND} {source.client.key}", _MEND): None for fix in fixes
            }  # for all clients at once
            yield advice(name, text, "; ".join(fixes))
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
        for command in commands:
            mend = f"{_MEND} {client.key}{option(project)} {'--enforce' if decides(command) else '--hook'}"
            guard = guard_of(command, self._coverage.guards, project)
            found = list(self._guard(name, command, guard, mend, "remove the hook from the file, if you do not know it"))
            skipped = why_skipped(self._machine, client, project, project) if decides(command) and not found else None
            yield from ([failed(name, *skipped)] if skipped else found or [good(name, command)])
        if project:
            yield from self._account_hook(client, file, project)

    def _account_hook(self, client: Client, file: Path, project: Path) -> Iterator[Check]:
        """What is wrong with the account's deciding hook in a project alone; nothing if all is well."""
        assert client.hook  # noqa: S101 - see the caller
        own = hook_file(self._machine, client.hook, None)
        name = f"{client.title} (hook), {own}"
        try:
            if not deciding(self._machine, client, None) or is_same(own, file):
                return
        except Fault:
            return  # it is told of the account
        skipped = why_skipped(self._machine, client, None, project)
        if skipped and skipped != why_skipped(self._machine, client, None, None):
            yield failed(name, *skipped)
        elif deciding(self._machine, client, project):
            yield failed(name, f"{file} has a deciding hook, too, so calls may count twice", "remove one of them from its file")

    @property
    def _instead(self) -> str:
        """What to do about a mcpguard. `uninstall` would remove options and hooks with it."""
        return f"write {self._coverage.guards.own or 'the path of an installed mcpguard'} in its place in the file"
