"""Plans what `install` and `uninstall` change in clients' files, and changes it."""

import contextlib
import itertools
import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from mcpguard.clients.catalog import CLIENTS, Client
from mcpguard.clients.discovery import Fault, Machine, Source, entries_of, may_exist, read, sources, unreadable
from mcpguard.clients.documents import Dialect
from mcpguard.clients.documents import read as parsed
from mcpguard.clients.editing import Edit, edited
from mcpguard.clients.entries import Entry
from mcpguard.clients.guards import Guards
from mcpguard.clients.launcher import Launcher
from mcpguard.clients.nodes import Array, Node, Object, Scalar, Unreadable
from mcpguard.clients.records import Record, load, save
from mcpguard.clients.running import is_running
from mcpguard.clients.writing import NotWritten, remove, replace
from mcpguard.errors import McpguardError

_OTHER_GUARDS: Final = ("avakill-shim", "airlock-mcp", "mcp-proxy", "tollbooth", "mcp-tollbooth")

_STARTS_MCPGUARD: Final = re.compile(r"""(?:^|[\s/\\'"])mcpguard(?:-cli)?(?:\.exe|[\[@=:]\S{0,100})?['"]?\s+run(?:\s|$)""")
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
        dialect: What the client can read.
    """

    file: Path
    old: bytes | None
    new: bytes | None
    dialect: Dialect


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
        servers: The names of all servers in the files, also of those that do not change.
    """

    def __init__(self, state: Path, machine: Machine) -> None:
        self.outcomes: list[Outcome] = []
        self.hooks: list[HookOutcome] = []
        self.faults: list[McpguardError] = []
        self.servers: set[str] = set()
        self.state = state
        rewritten = sources(machine, [client for client in CLIENTS if client.rewrites])
        self._rewriters = {_real(source.file): source.client for source in rewritten}  # others may read the file through a link
        self._contents: dict[str, bytes] = {}
        self._changes: dict[str, Change] = {}
        self._records = load(state)
        self._notes: dict[Record, bool] = {}
        self._edited: dict[Record, str] = {}
        self._told: set[str] = set()

    def content(self, file: Path) -> bytes:
        """A file's content with the changes so far.

        Raises:
            Fault: The file cannot be read.
        """
        key = _real(file)
        change = self._changes.get(key)
        if change is None and key not in self._contents:
            self._contents[key] = read(file)  # once, because the changes are made from this content
        return self._contents[key] if change is None else change.new or b""

    def put(self, file: Path, new: bytes | None, dialect: Dialect) -> None:
        """Change a file, create it, or with None remove it. Folders that are made for it are removed with it.

        Raises:
            Fault: A client is running that would undo the change.
        """
        key = _real(file)
        client = self._rewriters.get(key)
        if client and is_running(client):
            hint = f"quit {client.title}, also in the tray, then run this again"
            raise Fault(f"{file}: not changed: {client.title} is running, and would write its own copy back", hint)
        known = self._changes.get(key)
        old = known.old if known else self.content(file) if may_exist(file) else None
        self._changes[key] = Change(known.file if known else file, old, new, dialect)
        for folder in _folders(file) if old is None or new is None else ():
            record = _was_missing(folder)
            if self.holds(record) if new is None else not os.path.isdir(folder):  # noqa: PTH112 - `Path` raises without permission
                self.note(record, holds=new is not None)

    def add(self, outcome: Outcome) -> None:
        """Add what happens to a server."""
        self.outcomes.append(outcome)
        if outcome.action != "keep":
            self._edited.setdefault(_record(outcome.source, outcome.server), outcome.action)

    @property
    def changes(self) -> list[Change]:
        """The files that change."""
        return [change for change in self._changes.values() if change.old != change.new]

    def steps(self, changed: Collection[str]) -> dict[Client, str]:
        """What the user does in each client so that the changes apply.

        Args:
            changed: The files that were changed, with all links followed.
        """
        touched = {one.source.client: one.source.client.after for one in self.outcomes if _real(one.source.file) in changed}
        return touched | {hook.client: hook.step for hook in self.hooks if hook.step and _real(hook.file) in changed}

    def was_edited(self, source: Source, server: str) -> str:
        """What the plan has done with an entry for another client that reads the same file; empty if nothing."""
        return self._edited.get(_record(source, server), "")

    @contextlib.contextmanager
    def noting_faults(self, file: Path) -> Iterator[None]:
        """Note what the block could not do with a file, once for all clients and scopes that share the file."""
        try:
            yield
        except (Unreadable, Fault) as error:
            self.note_fault(file, error)

    def note_fault(self, file: Path, error: Unreadable | Fault) -> None:
        """Note what could not be done with a file, unless it is noted already."""
        fault = unreadable(file, error) if isinstance(error, Unreadable) else error
        if fault.message not in self._told:
            self._told.add(fault.message)
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
                if change.new is None:
                    self._remove_folders(change.file)
                yield change, None
        if not failed:
            with contextlib.suppress(McpguardError):  # a record too many does no harm
                save(self.state, dropped=self._notes.keys() - added)

    def _remove_folders(self, file: Path) -> None:
        """Remove the folders that were made for a file, unless there is something else in them."""
        with contextlib.suppress(OSError):
            for folder in itertools.takewhile(lambda one: self.holds(_was_missing(one)), _folders(file)):
                folder.rmdir()


def _folders(file: Path) -> Sequence[Path]:
    """The folders around a file, from the innermost."""
    return Path(_real(file)).parents


def _was_missing(folder: Path) -> Record:
    """The record of a folder that was made for a file."""
    return Record(os.path.join(folder, ""), ())  # noqa: PTH118 - `Path` drops the separator at the end


def _write(change: Change, backups: Path) -> None:
    if change.new is not None:
        replace(change.file, change.old, change.new, backups=backups)
    elif change.old is not None:
        remove(change.file, change.old, backups=backups)


Step = tuple[Outcome, Edit | None]
"""What happens to a server, and the edit of its entry that this needs."""


def plan_install(plan: Plan, sources: Iterable[Source], servers: frozenset[str], launcher: Launcher) -> None:
    """Plan to guard servers.

    Args:
        plan: The plan.
        sources: The files.
        servers: The names of the servers; empty for all.
        launcher: The command to write.
    """
    guards = Guards(os.environ)

    def step(source: Source, entry: Entry) -> Step:
        return _guard(plan, source, entry, launcher) if entry.guard is None else _mend(plan, source, entry, launcher, guards)

    _each(plan, sources, servers, step)


def plan_uninstall(plan: Plan, sources: Iterable[Source], servers: frozenset[str]) -> None:
    """Plan to undo `plan_install`."""

    def step(source: Source, entry: Entry) -> Step:
        return _unguard(plan, source, entry)

    _each(plan, sources, servers, step)


def _each(plan: Plan, sources: Iterable[Source], servers: frozenset[str], step: Callable[[Source, Entry], Step]) -> None:
    """Edit the entries of the named servers, all of a file at once. What cannot be done is a fault of the plan."""
    for (file, dialect), group in itertools.groupby(sources, lambda source: (source.file, source.dialect)):
        steps: list[Step] = []
        for source in group:
            with plan.noting_faults(file):
                for entry in entries_of(source, plan.content(file)):
                    plan.servers.add(entry.name)
                    if not servers or entry.name in servers:
                        with plan.noting_faults(file):
                            steps.append(step(source, entry))
        done = _edit(plan, file, dialect, list(dict.fromkeys(edit for _, edit in steps if edit)))
        for outcome, edit in steps:
            if edit is None or edit in done:
                plan.add(outcome)


def _edit(plan: Plan, file: Path, dialect: Dialect, edits: Collection[Edit]) -> Collection[Edit]:
    """Plan the edits of a file; return those that can be made."""
    if not edits:
        return ()
    with plan.noting_faults(file):
        made = edited(plan.content(file), dialect, edits)
        for fault in made.faults:
            plan.note_fault(file, fault)
        plan.put(file, made.data, dialect)
        for edit in made.done:  # without its record, an empty list would be left
            if not edit.guard or edit in made.had_args:
                had_args = made.had_args.get(edit, True)
                plan.note(Record(_real(file), (*edit.layout.path, edit.name)), holds=not had_args)
        return made.done
    return ()


def _record(source: Source, server: str) -> Record:
    return Record(_real(source.file), (*source.layout.path, server))


def _guard(plan: Plan, source: Source, entry: Entry, launcher: Launcher) -> Step:
    if entry.may_start:
        raise Fault(f"{source.file}: {entry.name}: not changed: {entry.detail}")
    left = entry.detail if entry.kind == "faulty" else _LEFT.get(entry.kind, "" if entry.name else "it has no name")
    if left or starts_mcpguard(entry):
        return Outcome(source, entry.name, "leave", left or OWN_COMMAND), None
    if entry.is_sandboxed and not _may_write(plan.content(source.file), source, plan.state):
        hint = f"add {plan.state} to sandbox.filesystem.allowWrite in this file, or remove sandboxEnabled"
        raise Fault(f"{source.file}: {entry.name}: its sandbox would keep mcpguard from its counters", hint)
    edit = Edit(source.layout, entry.name, launcher.words(entry.name))
    return Outcome(source, entry.name, "guard", _remark(source, entry)), edit


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
    node: Node | None = parsed(data, source.dialect).root
    for key in (*source.layout.path[:-1], "sandbox", "filesystem", "allowWrite"):
        node = node.get(key) if isinstance(node, Object) else None
    items = node.items if isinstance(node, Array) else []
    texts = [item.value for item in items if isinstance(item, Scalar) and isinstance(item.value, str)]
    folders = [Path(os.path.expanduser(text)) for text in texts]  # noqa: PTH111
    return any(folder == state or folder in state.parents for folder in folders)


def _mend(plan: Plan, source: Source, entry: Entry, launcher: Launcher, guards: Guards) -> Step:
    """Replace the path of an mcpguard that is gone. One that may be somebody else's is a fault: it guards nothing."""
    assert entry.guard  # noqa: S101 - see the caller
    program = entry.guard[0]
    guard = guards.of_entry(source, program)
    if guard.is_gone:
        edit = Edit(source.layout, entry.name, (launcher.program, *entry.guard[1:]))
        return Outcome(source, entry.name, "mend", f"{program} is gone"), edit
    if guard.state == "unsafe" and entry.kind == "stdio":
        hint = f"write {launcher.program} in its place in the file"
        raise Fault(f"{source.file}: {entry.name}: not changed: {guard.fault}", hint)
    return Outcome(source, entry.name, plan.was_edited(source, entry.name) or "keep"), None


def _unguard(plan: Plan, source: Source, entry: Entry) -> Step:
    if entry.guard is None:
        if starts_mcpguard(entry):
            return Outcome(source, entry.name, "leave", OWN_COMMAND), None
        return Outcome(source, entry.name, plan.was_edited(source, entry.name) or "keep"), None
    drops = plan.holds(_record(source, entry.name))
    return Outcome(source, entry.name, "unguard"), Edit(source.layout, entry.name, drop_empty_args=drops)
