"""Deletes old audit rows when a person asks for it, in portions of `upkeep`. It never takes the lock on the call log."""

import contextlib
import os
import time
from collections.abc import Iterator
from typing import Final

from mcpguard.errors import StoreUnavailable
from mcpguard.files import is_there
from mcpguard.stores.api import Options
from mcpguard.stores.clock import wall_us
from mcpguard.stores.locks import lock_file
from mcpguard.stores.sqlite import database
from mcpguard.stores.sqlite.call_log import CallLog, Lost, beside, damaged, log_path
from mcpguard.stores.sqlite.opening import open_files
from mcpguard.stores.sqlite.schema import require_schema
from mcpguard.stores.sqlite.upkeep import Upkeep

LOCK_S: Final = 5.0
"""How long a portion waits for another process that does upkeep."""

_PAUSE_S: Final = 0.01
"""The pause between two portions, in which others can do upkeep."""


def prune(path: str, options: Options, before_us: int) -> Iterator[int]:
    """Delete a namespace's rows from before a time. Yields the number of rows of each portion, after it is deleted.

    Args:
        path: The database, which exists.
        options: They name the namespace and its bounds.
        before_us: The time, in wall-clock time.

    Raises:
        StoreUnavailable: The database is not one of this mcpguard, it cannot be written, or another process does not release
            the store's lock.
    """
    with contextlib.ExitStack() as undo, database.reported(path):
        os.stat(path)  # the system says more plainly than SQLite why it cannot be opened
        if not _is_whole(path):
            open_files(path, timeout_s=LOCK_S, own_clock=None, wall=wall_us).close()
        lock = lock_file(beside(path, "-lock"))
        undo.callback(lock.close)
        log = CallLog(log_path(path))
        undo.callback(log.close)
        upkeep = Upkeep(path, log, options, now_us=0, busy=lambda: False)
        before_us = min(before_us, wall_us())
        more = True
        while more:
            if not lock.acquire(LOCK_S):
                raise StoreUnavailable(f"{path} is locked by another process", "end the process that holds it")
            try:
                dropped, more = upkeep.prune(before_us)
            except Lost:
                raise damaged(log.path, "it does not continue where the database is") from None
            finally:
                lock.release()
            if dropped:
                yield dropped
            time.sleep(_PAUSE_S if more else 0)


def _is_whole(path: str) -> bool:
    """Whether a store needs no repair, as a wrapper makes it when it opens the store."""
    with contextlib.closing(database.connect(path, mode="rw")) as db:
        require_schema(db, path)
        if not is_there(log_path(path)):
            return False
        at = database.position(db)
        with contextlib.closing(CallLog(log_path(path))) as log:
            return log.resumed(at, path)[0] == at
