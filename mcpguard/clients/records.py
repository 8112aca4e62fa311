"""What `install` notes for `uninstall`: what the files themselves do not tell.

`installed.json` in mcpguard's state folder is a list of objects with the members of `Record`: the entries that had no `args`,
the files of hooks that were empty, and the folders that were made for files of hooks. Without it, `uninstall` leaves the
entries an empty list, removes the files, and leaves the folders.
"""

import json
from collections.abc import Set
from pathlib import Path
from typing import Final, NamedTuple

from mcpguard.clients.writing import replace
from mcpguard.errors import McpguardError
from mcpguard.files import is_there, private_folder, read_at_once

NAME: Final = "installed.json"


class Record(NamedTuple):
    """An entry that had no `args`, a file that was empty, or a folder that was missing.

    Attributes:
        file: The client's file; for a folder, its path with a separator at the end.
        keys: The path of the entry in the file; the server's name is the last key. Empty for a file and a folder.
    """

    file: str
    keys: tuple[str, ...]


def load(state: Path) -> set[Record]:
    """The notes. A missing or damaged file has none."""
    try:
        return _records(read_at_once(state / NAME))
    except OSError:
        return set()


def save(state: Path, *, added: Set[Record] = frozenset(), dropped: Set[Record] = frozenset()) -> None:
    """Add notes and drop notes. The others stay, also those that another command has added meanwhile.

    Raises:
        McpguardError: The file cannot be written.
    """
    path = state / NAME
    known = load(state)
    if added <= known and not dropped & known:
        return
    try:
        private_folder(state)
        old = read_at_once(path) if is_there(path) else None
    except OSError as error:
        raise McpguardError(f"{path}: cannot be written: {error.strerror}", "check who may write to the folder") from error
    records = (_records(old or b"") | added) - dropped
    replace(path, old, json.dumps([one._asdict() for one in sorted(records)], indent=1).encode() + b"\n", backups=None)


def _records(data: bytes) -> set[Record]:
    try:
        return {Record(str(one["file"]), tuple(map(str, one["keys"]))) for one in json.loads(data)}
    except (ValueError, RecursionError, LookupError, TypeError):
        return set()
