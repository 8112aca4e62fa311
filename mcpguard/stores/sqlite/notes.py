"""The notes that hooks leave in the call log. A hook is a short process: it loads nothing else of the store."""

import contextlib
import json
from collections.abc import Sequence

from mcpguard.files import StrPath
from mcpguard.identity.client_agents import AgentNote
from mcpguard.light_typing import Final
from mcpguard.stores.sqlite.call_log import CallLog, log_path
from mcpguard.stores.sqlite.log_records import pack

NOTED: Final = "n"


def note_line(namespace: str, note: AgentNote, wall_us: int) -> str:
    """The line of an agent note. Without a text it removes the note with this key."""
    return f"{NOTED}\t{json.dumps(namespace)}\t{note.key}\t{json.dumps(note.text)}\t{wall_us}"


def read_note(fields: Sequence[str]) -> tuple[str, AgentNote, int]:
    """The namespace, the note and its wall-clock time in a line's fields."""
    _, namespace, key, agent, wall_us = fields
    return json.loads(namespace), AgentNote(key, json.loads(agent)), int(wall_us)


def leave_note(database: StrPath, namespace: str, note: AgentNote, *, wall_us: int, timeout_s: float) -> bool:
    """Append a note to a store's call log. Returns whether it was; False if the lock did not come free in time.

    Args:
        database: The database.
        namespace: See `Address.leave_note`.
        note: See there, too.
        wall_us: Wall-clock time.
        timeout_s: How long to wait for the lock.

    Raises:
        OSError, StoreUnavailable: It cannot be appended.
    """
    with contextlib.closing(CallLog(log_path(database))) as log, contextlib.closing(log.turn()) as lock:
        at = log.end(log.drained())  # before the turn, because calls wait for it
        if not lock.acquire(timeout_s):
            return False
        try:
            log.check()
            at = log.end(at)
            log.append(at, pack(at, [note_line(namespace, note, wall_us)])[0])
        finally:
            lock.release()
    return True
