"""Agent notes: before a call, the client's hook writes which agent makes it to the call log.

A hook is a short process. It opens the call log and nothing else of the store.
"""

import contextlib
import json
from collections.abc import Sequence
from typing import Final

from mcpguard.files import StrPath
from mcpguard.identity.client_agents import AgentNote
from mcpguard.stores.sqlite.call_log import CallLog, Lost, damaged, log_path
from mcpguard.stores.sqlite.log_records import IN_TEXT, pack

KIND: Final = "n"
"""The kind of a note's line in the call log: namespace as JSON, key, agent as JSON, wall-clock time.

Without an agent it removes the note with this key.
"""


def line(namespace: str, note: AgentNote, wall_us: int) -> str:
    """The line of a note."""
    return f"{KIND}\t{json.dumps(namespace)}\t{note.key}\t{json.dumps(note.agent)}\t{wall_us}"


def read(fields: Sequence[str]) -> tuple[str, AgentNote, int]:
    """The namespace, the note and its wall-clock time in a line's fields."""
    _, namespace, key, agent, wall_us = fields
    return json.loads(namespace), AgentNote(key, json.loads(agent)), int(wall_us)


def leave(path: StrPath, namespace: str, note: AgentNote, *, wall_us: int, timeout_s: float) -> bool:
    """Append a note to the call log of a store that exists.

    Args:
        path: The store's database.
        namespace: Only wrappers of this namespace see the note.
        note: The note.
        wall_us: Wall-clock time.
        timeout_s: How long to wait for the log's lock.

    Returns:
        Whether it was written; False if the lock did not come free in time.

    Raises:
        OSError, StoreUnavailable: The log is missing, is not a call log, or cannot be written.
    """
    with contextlib.closing(CallLog(log_path(path))) as log, contextlib.closing(log.turn()) as lock:
        try:
            at = log.end(log.drained())  # before the turn, because calls wait for it
            if not lock.acquire(timeout_s):
                return False
            try:
                log.check()
                at = log.end(at)
                log.append(at, pack(at, [(line(namespace, note, wall_us), 0, IN_TEXT)])[0])
            finally:
                lock.release()
        except Lost:
            raise damaged(log.path, "it does not continue where the database is") from None
    return True
