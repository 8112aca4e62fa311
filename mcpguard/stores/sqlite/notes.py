"""A hook's note of which agent makes a call, left in the call log before the call comes.

A hook is a process that lives for a moment before each call. It needs nothing of a store but its call log.
"""

import contextlib
import os
from pathlib import Path

from mcpguard.core.claude_code import AgentNote
from mcpguard.stores.sqlite import entries
from mcpguard.stores.sqlite.call_log import CallLog, log_path
from mcpguard.stores.sqlite.locks import QueueLock


def leave(path: Path, namespace: str, note: AgentNote, *, wall_us: int, timeout_s: float) -> bool:
    """Append a note to the call log of a store that exists.

    Args:
        path: The store's database.
        namespace: Only wrappers of this namespace see the note.
        note: The note.
        wall_us: Wall-clock time.
        timeout_s: How long to wait for a turn.

    Returns:
        Whether it was written; it is not if the turn took too long.

    Raises:
        OSError, StoreUnavailable: The log is missing, is none, or cannot be written.
    """
    with contextlib.closing(CallLog(log_path(path))) as log, contextlib.closing(QueueLock(os.dup(log.fd))) as lock:
        if not lock.acquire(timeout_s):
            return False
        try:
            log.check()
            log.append(log.end(log.drained()), entries.note_line(namespace, note, wall_us), 0)
        finally:
            lock.release()
    return True
