"""Writes the write-behind buffer to a store: at once, in batches, or while calls go on."""

import contextlib
import threading
from collections.abc import Callable, Iterator

from mcpguard.core import limiter
from mcpguard.errors import StoreUnavailable
from mcpguard.stores.api import AuditReader, Clock, Recoverable
from mcpguard.stores.failover.breaker import NOT_IN_TIME
from mcpguard.stores.failover.write_behind import Batch, WriteBehindBuffer


def newest_row_id(store: AuditReader) -> int:
    """The id of a store's newest row; 0 if it has none."""
    newest = next(store.newest(), None)
    return newest.row_id if newest else 0


def write(store: Recoverable, batch: Batch, clock: Clock, *, patience_us: int | None = None) -> list[int]:
    """Write a batch, admissions first, and mark in it how far that got.

    Args:
        store: The store.
        batch: The batch.
        clock: The clock of the admissions.
        patience_us: If counting takes longer than this, the rows are not begun.

    Returns:
        The store's ids of the rows.

    Raises:
        StoreUnavailable: The rest of the batch was not written, or its success is unknown.
    """
    now_us = clock()
    logs = [(counter, limiter.live(log, counter.window_us, now_us)) for counter, log in batch.logs]
    if counted := [(counter, limiter.shift(log, -now_us)) for counter, log in logs if log]:
        store.adopt(counted, batch.write_back_id)
    batch.is_counted = True
    if patience_us is not None and clock() - now_us > patience_us:
        raise StoreUnavailable("it answers too slowly")
    batch.is_begun = True
    return store.append([row for _, row in batch.rows]) if batch.rows else []


@contextlib.contextmanager
def put_back_on_failure(buffer: WriteBehindBuffer, batch: Batch) -> Iterator[None]:
    """Keep a batch in its buffer if writing it fails."""
    try:
        yield
    except Exception:
        buffer.put_back(batch)
        raise


class WriteBack:
    """Writes one wrapper's buffer to its store, and then lets calls use the store.

    Calls are decided locally in the meantime, and add rows to the buffer. So each batch but the last is written without the
    lock. If the calls turn out to add rows as fast as they are written, some batches at a time are written with the lock, so
    that the buffer becomes empty. The last batch is written with the lock: no row is missing when the first call uses the
    store. A call waits for the lock at most `patience_us` and one operation of the store.

    Args:
        buffer: The buffer.
        lock: Held while a call is decided.
        clock: The clock of the admissions.
        patience_us: How long the lock is held, but for the operation that is then under way.
    """

    def __init__(self, buffer: WriteBehindBuffer, lock: threading.Lock, clock: Clock, *, patience_us: int) -> None:
        self._buffer = buffer
        self._lock = lock
        self._clock = clock
        self._patience_us = patience_us

    def write_all(self, store: Recoverable) -> None:
        """Write the whole buffer. The caller holds the lock."""
        while not self._buffer.is_empty:
            self._write(store, self._buffer.take())

    def run(self, store: Recoverable, done: Callable[[], None], *, until_us: int | None) -> None:
        """Write the whole buffer while calls go on.

        Args:
            store: The store.
            done: Called with the lock held, when the buffer is empty.
            until_us: When to give up; None for never.

        Raises:
            Exception: The rest of the buffer could not be written. It is kept.
        """
        rows_before = self._buffer.row_count
        while not self._write_some(store, done, hurries=self._buffer.written > rows_before):
            if until_us is not None and self._clock() > until_us:
                raise NOT_IN_TIME

    def _write_some(self, store: Recoverable, done: Callable[[], None], *, hurries: bool) -> bool:
        """Write a batch, or as many as the patience allows if the lock is kept. Returns whether the buffer is empty."""
        with self._lock:
            until_us = self._clock() + self._patience_us
            while True:
                batch = self._buffer.take()
                is_last = self._buffer.is_empty
                is_locked = is_last or hurries
                self._write(store, batch, patience_us=self._patience_us if is_locked else None, is_locked=is_locked)
                if is_last:
                    done()
                    return True
                if not hurries or self._clock() > until_us:
                    return False

    def _write(self, store: Recoverable, batch: Batch, *, patience_us: int | None = None, is_locked: bool = True) -> None:
        """Write a batch. The caller holds the lock; the store is used without it unless `is_locked`."""
        unlocked = contextlib.nullcontext() if is_locked else _released(self._lock)
        with put_back_on_failure(self._buffer, batch), unlocked:
            row_ids = write(store, batch, self._clock, patience_us=patience_us)
        self._buffer.wrote(batch, row_ids)


@contextlib.contextmanager
def _released(lock: threading.Lock) -> Iterator[None]:
    """Release a lock for a while."""
    lock.release()
    try:
        yield
    finally:
        lock.acquire()
