"""Plans what `install` and `uninstall` change in clients' files, and changes it."""

import contextlib
import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

from mcpguard.clients.catalog import CLIENTS, Client
from mcpguard.clients.discovery import Fault, Machine, Source, entries_of, may_exist, read, sources, unreadable
from mcpguard.clients.documents import read as parsed
from mcpguard.clients.entries import Entry, guarded, reguarded, unguarded
from mcpguard.clients.launcher import Launcher, find
from mcpguard.clients.nodes import Unreadable, plain
from mcpguard.clients.records import Record, load, save
from mcpguard.clients.running import is_running
from mcpguard.clients.writing import NotWritten, remove, replace
from mcpguard.errors import McpguardError

_OTHER_GUARDS: Final = ("avakill-shim", "airlock-mcp", "mcp-proxy", "tollbooth", "mcp-tollbooth")

_STARTS_MCPGUARD: Final = re.compile(r"""(?:^|[\s/\\'"])mcpguard(?:-cli)?(?:\.exe|[\[@=:]\S*)?['"]?\s+run(?:\s|$)""")
"""The program, or the package that `pipx run` and an image of a container name, perhaps with an extra or a version."""

OWN_COMMAND: Final = "its own command starts mcpguard run"
"""What is said of an entry that starts mcpguard through another program, which neither `install` nor `uninstall` changes."""

_FOLDER: Final = re.compile(r"(?:--(?:directory|project|prefix|cwd)|-C)[\s=]\S+")
"""An option of a launcher for a folder, which can have the program's name: `uv --directory /src/mcpguard run server.py`."""

_LEFT: Final = {
    "remote": "remote: mcpguard guards only servers that the client starts",
    "disabled": "disabled",
    "bundled": "part of the client or of an extension, which starts it without a command in this file",
}


_real: Final = os.path.realpath


class Outcome(NamedTuple):
    """What happens to a server.

    Attributes:
        source: Where its entry is.
        server: Its name.
        action: `guard`, `mend`, `unguard`, `keep` or `leave`.
        detail: What the user should know; empty for the usual.
    """

    source: Source
    server: str
    action: str
    detail: str = ""


class Change(NamedTuple):
    """A file that changes.

    Attributes:
        file: The file.
        old: Its content; None if it does not exist.
        new: Its new content; None to remove it.
    """

    file: Path
    old: bytes | None
    new: bytes | None


class HookOutcome(NamedTuple):
    """What happens to a client's hook.

    Attributes:
        client: The client.
        file: The file that holds the hook.
        text: What was done.
        step: What the user does so that the client takes the change up; empty if nothing changes.
    """

    client: Client
    file: Path
    text: str
    step: str = ""


class Plan:
    """Changes of files that are not written yet.

    Args:
        state: mcpguard's state folder.
        machine: The account.

    Attributes:
        state: mcpguard's state folder.
        outcomes: What happens to each server.
        hooks: What happens to hooks.
        faults: What could not be done.
    """

    def __init__(self, state: Path, machine: Machine) -> None:
        self.outcomes: list[Outcome] = []
        self.hooks: list[HookOutcome] = []
        self.faults: list[McpguardError] = []
        self.state = state
        rewritten = sources(machine, [client for client in CLIENTS if client.rewrites])
        self._rewriters = {_real(source.file): source.client for source in rewritten}  # others may read the file through a link
        self._changes: dict[str, Change] = {}
        self._records = load(state)
        self._notes: dict[Record, bool] = {}

    def content(self, file: Path) -> bytes:
        """A file's content with the changes so far.

        Raises:
            Fault: The file cannot be read.
        """
        change = self._changes.get(_real(file))
        return read(file) if change is None else change.new or b""

    def put(self, file: Path, new: bytes | None) -> None:
        """Change a file, create it, or with None remove it.

        Raises:
            Fault: A client is running that would undo the change.
        """
        key = _real(file)
        client = self._rewriters.get(key)
        if client and is_running(client):
            hint = f"quit {client.title}, also in the tray, then run this again"
            raise Fault(f"{file}: not changed: {client.title} is running, and would write its own copy back", hint)
        known = self._changes.get(key)
        old = known.old if known else read(file) if may_exist(file) else None
        self._changes[key] = Change(known.file if known else file, old, new)

    @property
    def changes(self) -> list[Change]:
        """The files that change."""
        return [change for change in self._changes.values() if change.old != change.new]

    def steps(self, changed: Collection[str]) -> dict[Client, str]:
        """What the user does in each client so that it takes up the changes.

        Args:
            changed: The files that were changed, with all links followed.
        """
        touched = {one.source.client: one.source.client.after for one in self.outcomes if _real(one.source.file) in changed}
        return touched | {hook.client: hook.step for hook in self.hooks if hook.step and _real(hook.file) in changed}

    def was_edited(self, source: Source, server: str) -> str:
        """What the plan has done with an entry for another client that reads the same file; empty if nothing."""
        key = _record(source, server)
        same = (one.action for one in self.outcomes if one.server == server and _record(one.source, server) == key)
        return next((action for action in same if action != "keep"), "")

    @contextlib.contextmanager
    def noting_faults(self, file: Path) -> Iterator[None]:
        """Note what the block could not do with a file, once for all clients and scopes that share the file."""
        try:
            yield
        except (Unreadable, Fault) as error:
            fault = unreadable(file, error) if isinstance(error, Unreadable) else error
            if not any(known.message == fault.message for known in self.faults):
                self.faults.append(fault)

    def note(self, record: Record, *, holds: bool) -> None:
        """Keep a record, or drop it once the files are written."""
        self._notes[record] = holds

    def holds(self, record: Record) -> bool:
        """Whether there is a record."""
        return record in self._records

    def apply(self) -> Iterator[tuple[Change, NotWritten | None]]:
        """Change the files, one after the other. A file that cannot be changed is left as it is.

        Raises:
            McpguardError: mcpguard's own folder cannot be written to. No file was changed.
        """
        added = {record for record, holds in self._notes.items() if holds}
        save(self.state, added=added)  # first, so that a command that is killed leaves too many, not too few
        failed = False
        for change in self.changes:
            try:
                _write(change, self.state / "backups")
            except NotWritten as error:
                failed = True
                yield change, error
            else:
                yield change, None
        if not failed:
            with contextlib.suppress(McpguardError):  # a record too many does no harm
                save(self.state, dropped=self._notes.keys() - added)


def _write(change: Change, backups: Path) -> None:
    if change.new is not None:
        replace(change.file, change.old, change.new, backups=backups)
    elif change.old is not None:
        remove(change.file, change.old, backups=backups)


def plan_install(plan: Plan, sources: Iterable[Source], servers: frozenset[str], launcher: Launcher) -> None:
    """Plan to guard servers.

    Args:
        plan: The plan.
        sources: The files.
        servers: The names of the servers; empty for all.
        launcher: The command to write.
    """

    def edit(source: Source, entry: Entry) -> Outcome:
        return _guard(plan, source, entry, launcher) if entry.guard is None else _mend(plan, source, entry, launcher)

    _each(plan, sources, servers, edit)


def plan_uninstall(plan: Plan, sources: Iterable[Source], servers: frozenset[str]) -> None:
    """Plan to undo `plan_install`."""

    def edit(source: Source, entry: Entry) -> Outcome:
        return _unguard(plan, source, entry)

    _each(plan, sources, servers, edit)


def _each(plan: Plan, sources: Iterable[Source], servers: frozenset[str], edit: Callable[[Source, Entry], Outcome]) -> None:
    """Edit the entries of the named servers. What cannot be done is a fault of the plan, and the rest is done."""
    for source in sources:
        with plan.noting_faults(source.file):
            for entry in entries_of(source, plan.content(source.file)):
                if not servers or entry.name in servers:
                    with plan.noting_faults(source.file):
                        plan.outcomes.append(edit(source, entry))


def _record(source: Source, server: str) -> Record:
    return Record(_real(source.file), (*source.layout.path, server))


def _guard(plan: Plan, source: Source, entry: Entry, launcher: Launcher) -> Outcome:
    if entry.may_start:
        raise Fault(f"{source.file}: {entry.name}: not changed: {entry.detail}")
    if entry.kind != "stdio":
        return Outcome(source, entry.name, "leave", entry.detail if entry.kind == "faulty" else _LEFT[entry.kind])
    if not entry.name:
        return Outcome(source, entry.name, "leave", "it has no name")
    if starts_mcpguard(entry):
        return Outcome(source, entry.name, "leave", OWN_COMMAND)
    data = plan.content(source.file)
    if entry.is_sandboxed and not _may_write(data, source, plan.state):
        hint = f"add {plan.state} to sandbox.filesystem.allowWrite in this file, or remove sandboxEnabled"
        raise Fault(f"{source.file}: {entry.name}: its sandbox would keep mcpguard from its counters", hint)
    where = (source.layout, source.dialect, entry.name)
    new = guarded(data, *where, launcher.words(entry.name))
    plan.put(source.file, new)
    plan.note(_record(source, entry.name), holds=unguarded(new, *where) != data)  # an empty list would be left
    return Outcome(source, entry.name, "guard", _remark(source, entry))


def _remark(source: Source, entry: Entry) -> str:
    """What a user should know of a server that is now guarded; may be empty."""
    if source.is_of_container:
        return "it starts in the container, where mcpguard must have the same path"
    other = Path(entry.words[0]).name if entry.words else ""
    return f"it also runs through {other}" if other in _OTHER_GUARDS else ""


def starts_mcpguard(entry: Entry) -> bool:
    """Whether an entry starts mcpguard through another program, such as `uvx` or `sh -c`. Another guard would count twice."""
    return _STARTS_MCPGUARD.search(_FOLDER.sub("", " ".join(entry.words))) is not None


def _may_write(data: bytes, source: Source, state: Path) -> bool:
    """Whether the sandbox of a VS Code file lets its servers write to mcpguard's state folder."""
    value = plain(parsed(data, source.dialect).root)
    for key in (*source.layout.path[:-1], "sandbox", "filesystem", "allowWrite"):
        value = value.get(key) if isinstance(value, dict) else None
    folders = [Path(os.path.expanduser(text)) for text in value or () if isinstance(text, str)]  # noqa: PTH111
    return any(folder == state or folder in state.parents for folder in folders)


def _mend(plan: Plan, source: Source, entry: Entry, launcher: Launcher) -> Outcome:
    """Replace the path of an mcpguard that is gone."""
    assert entry.guard  # noqa: S101 - see the caller
    program = entry.guard[0]
    if not source.tells_where(program) or find(program, os.environ, source.start):
        return Outcome(source, entry.name, plan.was_edited(source, entry.name) or "keep")
    data = plan.content(source.file)
    plan.put(source.file, reguarded(data, source.layout, source.dialect, entry.name, launcher.program))
    return Outcome(source, entry.name, "mend", f"{program} is gone")


def _unguard(plan: Plan, source: Source, entry: Entry) -> Outcome:
    if entry.guard is None:
        if starts_mcpguard(entry):
            return Outcome(source, entry.name, "leave", OWN_COMMAND)
        return Outcome(source, entry.name, plan.was_edited(source, entry.name) or "keep")
    record = _record(source, entry.name)
    data, drops = plan.content(source.file), plan.holds(record)
    plan.put(source.file, unguarded(data, source.layout, source.dialect, entry.name, drop_empty_args=drops))
    plan.note(record, holds=False)
    return Outcome(source, entry.name, "unguard")
