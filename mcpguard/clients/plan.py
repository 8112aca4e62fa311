"""Changes of clients' files: planned first, so that they can be shown, and then written.

A file has its old bytes or its new bytes, whenever the process is killed. Before it is changed, its bytes are saved in the
folder of the backups. Only this account can read that folder, because clients' files hold keys of servers. A backup is never
overwritten and never deleted.

`installed.json` in mcpguard's state folder is a list of objects with the members of `UndoRecord`: the entries that had no
`args`, those that were rewritten, and files made for them. Without it, `uninstall` leaves an empty list or file, or what was
written without mcpguard.
"""

import contextlib
import errno
import json
import os
import re
import secrets
import sys
import time
from collections.abc import Iterator, Set
from pathlib import Path

from mcpguard import whole_files
from mcpguard.clients.catalog import CLIENTS, Client
from mcpguard.clients.discovery import FileFault, HookFile, Machine, Source, may_exist, read, sources, unreadable
from mcpguard.clients.entries import Entry, EntryEdit
from mcpguard.clients.guards import Guards
from mcpguard.clients.launcher import is_same
from mcpguard.documents.document import Dialect
from mcpguard.documents.model import Unreadable
from mcpguard.errors import McpguardError
from mcpguard.files import private_folder, read_at_once
from mcpguard.light_typing import Final, NamedTuple
from mcpguard.system_programs import output_of

NAME: Final = "installed.json"

TIMEOUT_S: Final = 5.0
"""How long to wait for the system's list of processes."""

real: Final = os.path.realpath


class EntryOutcome(NamedTuple):
    """What happens to a server.

    Attributes:
        source: The file with its entry.
        entry: Its entry.
        action: `guard`, `mend`, `unguard`, `keep` or `leave`.
        detail: What the user should know; empty for the usual.
        edit: The edit of its entry that this needs; None if it needs none.
    """

    source: Source
    entry: Entry
    action: str
    detail: str = ""
    edit: EntryEdit | None = None

    @property
    def server(self) -> str:
        """The server's name."""
        return self.entry.name


class HookOutcome(NamedTuple):
    """What happens to a client's hook.

    Attributes:
        place: The file with the hook.
        text: What was done.
        step: What the user does so that the client takes the change up; empty if nothing changes.
    """

    place: HookFile
    text: str
    step: str = ""


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
    dialect: Dialect = Dialect.JSON


class UndoRecord(NamedTuple):
    """An entry that had no `args`, or that was rewritten, or a file that was made for such entries.

    Attributes:
        file: The client's file.
        keys: The path of the entry in the file; the server's name is the last key. Empty for a file.
        old: The text that a rewritten one had.
        new: The text in its place; empty for an entry that had no `args`.
    """

    file: str
    keys: tuple[str, ...]
    old: str = ""
    new: str = ""


def load(state: Path) -> set[UndoRecord]:
    """The records. A missing or damaged file has none."""
    try:
        return {
            UndoRecord(str(one["file"]), tuple(map(str, one["keys"])), str(one.get("old", "")), str(one.get("new", "")))
            for one in json.loads(read_at_once(state / NAME))
        }
    except (OSError, ValueError, RecursionError, LookupError, TypeError, AttributeError):
        return set()


def save(state: Path, *, added: Set[UndoRecord] = frozenset(), dropped: Set[UndoRecord] = frozenset()) -> None:
    """Add records and drop records. The others stay, also those that another command has added meanwhile.

    Raises:
        McpguardError: The file cannot be written.
    """
    path, known = state / NAME, load(state)
    new = (known | added) - dropped
    if new != known:
        with whole_files.reported(path):
            private_folder(state)
        whole_files.write(path, json.dumps([one._asdict() for one in sorted(new)], indent=1).encode() + b"\n")


class ChangePlan:
    """Changes of files that are not written yet.

    Args:
        state: mcpguard's state folder.
        machine: The account.

    Attributes:
        state: mcpguard's state folder.
        machine: The account.
        guards: Examines the mcpguards that the files name.
        outcomes: What happens to each server.
        hooks: What happens to hooks.
        faults: What could not be done.
        servers: The names of all servers in the files, also of those that do not change.
    """

    def __init__(self, state: Path, machine: Machine) -> None:
        self.outcomes: list[EntryOutcome] = []
        self.hooks: list[HookOutcome] = []
        self.faults: list[McpguardError] = []
        self.servers: set[str] = set()
        self.state = state
        self.machine = machine
        self.guards = Guards(machine.environ)
        rewritten = sources(machine, [client for client in CLIENTS if client.processes])
        self._rewriters = {real(source.file): source.client for source in rewritten}  # others may read the file through a link
        self._files: dict[str, Change] = {}
        self._records = load(state)
        self._notes: dict[UndoRecord, bool] = {}

    def content(self, file: Path) -> bytes:
        """A file's content with the changes so far. It is read once. A missing file has none.

        Raises:
            FileFault: The file cannot be read.
        """
        key = self._key(file)
        if key not in self._files:
            data = read(file) if may_exist(file) else None
            self._files[key] = Change(file, data, data)
        return self._files[key].new or b""

    def put(self, file: Path, new: bytes | None, dialect: Dialect) -> None:
        """Change a file, create it, or with None remove it.

        Raises:
            FileFault: A client is running that would undo the change.
        """
        client = next((client for other, client in self._rewriters.items() if is_same(other, file)), None)
        if client and is_running(client):
            hint = f"quit {client.title}, also in the tray, then run this again"
            raise FileFault(f"{file}: not changed: {client.title} is running, and would write its own copy back", hint)
        self.content(file)
        key = self._key(file)
        self._files[key] = self._files[key]._replace(new=new, dialect=dialect)

    def _key(self, file: Path) -> str:
        """The name under which a file is in `_files`."""
        return next((other for other in self._files if is_same(other, file)), real(file))

    @property
    def changes(self) -> list[Change]:
        """The files that change."""
        return [change for change in self._files.values() if change.old != change.new]

    @property
    def steps(self) -> dict[Client, str]:
        """What the user does in each client so that the changes apply."""
        changed = {real(change.file) for change in self.changes}
        steps = {one.source.client: one.source.client.after for one in self.outcomes if real(one.source.file) in changed}
        for place, _, step in self.hooks:
            # A hook that needs nothing does not take up the client's servers
            if step and real(place.file) in changed and not (place.client in steps and step.startswith("nothing")):
                steps[place.client] = step
        return steps

    @contextlib.contextmanager
    def noting_faults(self, file: Path) -> Iterator[None]:
        """Note what the block could not do with a file."""
        try:
            yield
        except (Unreadable, FileFault) as error:
            self.note_fault(file, error)

    def note_fault(self, file: Path, error: Unreadable | FileFault) -> None:
        """Note what could not be done with a file, once for all clients and scopes that share the file."""
        fault = unreadable(file, error) if isinstance(error, Unreadable) else error
        if all(fault.message != other.message for other in self.faults):
            self.faults.append(fault)

    def note(self, record: UndoRecord, *, holds: bool) -> None:
        """Keep a record, or drop it once the files are written."""
        self._notes[record] = holds

    def holds(self, record: UndoRecord) -> bool:
        """Whether there is a record."""
        return any(one.keys == record.keys and is_same(one.file, record.file) for one in self._records)

    def rewritten(self, source: Source, server: str) -> list[UndoRecord]:
        """The records of a rewritten entry. Others than the last are left of changes that somebody undid."""
        return [one for one in self._records if one.new and one[:2] == record_of(source, server)[:2]]

    def apply(self) -> list[FileFault]:
        """Change the files, one after the other. What could not be done is no longer planned.

        Returns:
            Why files could not be changed. They were left as they are, or another program has changed them right afterwards.

        Raises:
            McpguardError: mcpguard's own folder cannot be written to. No file was changed.
        """
        added = {record for record, holds in self._notes.items() if holds}
        save(self.state, added=added)  # first, so that a command that is killed leaves too many, not too few
        faults: list[FileFault] = []
        for change in self.changes:
            try:
                write(change, self.state / "backups")
            except FileFault as fault:
                faults.append(fault)
                self._drop(change.file)
        if not faults:
            with contextlib.suppress(McpguardError):  # a record too many does no harm
                save(self.state, dropped=self._notes.keys() - added)
        return faults

    def _drop(self, file: Path) -> None:
        """Forget what was planned for a file. It can have several names."""
        del self._files[self._key(file)]
        self.outcomes = [one for one in self.outcomes if real(one.source.file) != real(file)]
        self.hooks = [one for one in self.hooks if real(one.place.file) != real(file)]


def record_of(source: Source, server: str) -> UndoRecord:
    """The record of an entry that had no `args`."""
    return UndoRecord(real(source.file), (*source.layout.path, server))


def write(change: Change, backups: Path) -> None:
    """Replace a file's content, make the file with its folder, or remove it with its folder if that becomes empty.

    A file that is replaced keeps its mode, its owner and its attributes; a link to it stays a link.

    Args:
        change: The change.
        backups: The folder of the backups.

    Raises:
        FileFault: The file cannot be written, or its content is not `change.old`. It was left as it is. Or another program
            changed it right afterwards.
    """
    file, old, new, _ = change
    target = Path(os.path.realpath(file))

    def check() -> None:
        if _content(target) != old or Path(os.path.realpath(file)) != target:
            raise FileFault(f"{file}: not changed, because another program has changed it just now", "run this again")

    try:
        if old is None:
            target.parent.mkdir(parents=True, exist_ok=True)
        else:
            if new is not None:
                whole_files.require_writable(target)
            _save(target, old, backups)
        if new is not None:
            whole_files.remove_leftovers(target)
            whole_files.replace(target, new, check=check)
        else:
            check()
            os.unlink(file)  # noqa: PTH108
            whole_files.sync_folder(file.parent)
    except OSError as error:
        hint = _HINTS.get(error.errno or 0, "check that the file, its folder and mcpguard's own folder can be written to")
        raise FileFault(f"{file}: not changed: {error.strerror or error}", hint) from error
    with contextlib.suppress(OSError):  # it cannot be read, or there is something else in the folder
        if new is None:
            file.parent.rmdir()
        elif _content(target) != new:
            raise FileFault(f"{file}: another program has changed the file right afterwards", "quit it, then run this again")


_HINTS: Final = {
    errno.EINVAL: "check where the link leads",
    errno.ESTALE: whole_files.SWAPPED_HINT,
    errno.ETXTBSY: whole_files.IN_USE_HINT,
    errno.EACCES: "give your account the right to write to the file and to its folder",
    errno.EPERM: "if it belongs to another account, run this command as that account; else give the file a group of yours",
    errno.EROFS: "the file is on a read-only file system: edit the file that it is made from",
    errno.ENOSPC: "free some space on the disk, then run this again",
    errno.EDQUOT: "free some of your disk quota, then run this again",
    errno.EBUSY: "the file is a mount point, which cannot be replaced: edit the file on the other side",
}


def _content(path: Path) -> bytes | None:
    try:
        return read_at_once(path)
    except FileNotFoundError:
        return None


def _save(path: Path, data: bytes, backups: Path) -> None:
    """Save a file's bytes in a new file with mode 0600, whose name has the time and the path.

    Raises:
        FileFault: The file cannot be saved.
    """
    where = re.sub(r"[^\w.-]+", "-", str(path)).strip("-")[-150:]
    name = f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{secrets.token_hex(4)}-{where}"
    try:
        private_folder(backups)
        whole_files.replace(backups / name, data)
    except OSError as error:
        what = f"{path}: not changed, because no copy of it can be saved in {backups}: {error.strerror or error}"
        raise FileFault(what, "check that this folder can be written to, and that the disk is not full") from error


def is_running(client: Client) -> bool:
    """Whether the client is running; False if that cannot be found out."""
    if not client.processes:
        return False
    on_linux, on_mac, on_windows = client.processes
    if sys.platform == "win32":
        found = output_of("tasklist", "/FI", f"IMAGENAME eq {on_windows}", within_s=TIMEOUT_S)
        return on_windows.lower() in found.lower()
    if sys.platform == "darwin":
        found = output_of("pgrep", "-a", "-x", on_mac, within_s=TIMEOUT_S)  # -a: also if it has started this process
        return bool(found.strip())
    return any(_name(process) == on_linux for process in Path("/proc").glob("[0-9]*"))


def _name(process: Path) -> str:
    with contextlib.suppress(OSError, ValueError):  # it has ended, or belongs to another account
        return (process / "comm").read_text("utf-8", "replace").strip()
    return ""
