"""Writes the write-behind buffer to a store: at once, in batches, or while calls go on."""

import contextlib
import threading
from collections.abc import Callable, Iterator

from mcpguard.limiter import sliding
from mcpguard.stores.api import AuditReader, Clock, Recoverable
from mcpguard.stores.failover.breaker import NOT_IN_TIME
from mcpguard.stores.failover.in_flight import TOO_SLOW
from mcpguard.stores.failover.write_behind import Batch, WriteBehindBuffer


def newest_row_id(store: AuditReader) -> int:
    """The id of a store's newest row; 0 if it has none."""
    newest = next(store.newest(), None)
    return newest.row_id if newest else 0


def write(store: Recoverable, batch: Batch, clock: Clock, *, patience_us: int | None = None) -> list[int]:
    """Write a batch: first its charges, then its rows. Note in the batch what was written.

    Args:
        store: The store.
        batch: The batch.
        clock: The clock of the charges.
        patience_us: If counting takes longer than this, the rows are not sent.

    Returns:
        The store's ids of the rows.

    Raises:
        StoreUnavailable: The rest of the batch was not written, or its success is unknown.
    """
    now_us = clock()
    logs = [(counter, sliding.live(log, counter.window_us, now_us)) for counter, log in batch.logs]
    if counted := [(counter, sliding.shift(log, -now_us)) for counter, log in logs if log]:
        store.adopt(counted, batch.write_back_id)
    batch.logs_counted = True
    if not batch.rows:
        return []
    if patience_us is not None and clock() - now_us > patience_us:
        raise TOO_SLOW
    batch.rows_sent = True
    return store.append([row for _, row in batch.rows])


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

    Until then calls are decided locally, and add rows to the buffer. All batches but the last are written without the lock, so
    that calls do not wait. If calls add rows as fast as they are written, several batches are written each time the lock is
    held, so that the buffer becomes empty. The last batch is written with the lock: no row is missing when the first call uses
    the store. A call waits for the lock at most `patience_us` and one operation of the store.

    Args:
        buffer: The buffer.
        lock: Held while a call is decided.
        clock: The clock of the charges.
        patience_us: How long the lock is held. An operation of the store that is then under way is finished.
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

    def run(self, store: Recoverable, done: Callable[[int], None], *, until_us: int | None) -> None:
        """Write the whole buffer while calls go on.

        Args:
            store: The store.
            done: Called with the lock held, when the buffer is empty. Gets the time after which no operation of the store may
                begin, because a call may wait.
            until_us: When to give up; None for never.

        Raises:
            Exception: The rest of the buffer could not be written. It is kept.
        """
        rows_before = self._buffer.row_count  # if more than these were written, calls add rows as fast as they are written
        while not self._write_some(store, done, keeps_lock=self._buffer.written > rows_before):
            if until_us is not None and self._clock() > until_us:
                raise NOT_IN_TIME

    def _write_some(self, store: Recoverable, done: Callable[[int], None], *, keeps_lock: bool) -> bool:
        """Write a batch; with `keeps_lock`, write batches for `patience_us`. Returns whether the buffer is empty."""
        with self._lock:
            until_us = self._clock() + self._patience_us
            while True:
                batch = self._buffer.take()
                is_last = self._buffer.is_empty
                is_locked = is_last or keeps_lock
                self._write(store, batch, patience_us=self._patience_us if is_locked else None, is_locked=is_locked)
                if is_last:
                    done(until_us)
                    return True
                if not keeps_lock or self._clock() > until_us:
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
