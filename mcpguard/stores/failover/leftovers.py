"""Takes in the spill files of wrappers that ended while their store could not be used.

Theory of operation. Each charge and row is written exactly once. A batch is noted in the file before it is written, and
again afterwards. If the second note is missing, the charges are sent again under the same write-back id, which the store
counts once, and the rows are looked for in the store. The same is done for a batch of this wrapper that failed.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Final, Protocol, TypeVar

from mcpguard.errors import StoreUnavailable
from mcpguard.stores.api import Clock, Recoverable
from mcpguard.stores.failover.spill import HEADER, SpillFile, SpillFolder, SpillLog
from mcpguard.stores.failover.write_back import newest_row_id, put_back_on_failure, write
from mcpguard.stores.failover.write_behind import WriteBehindBuffer
from mcpguard.text.printing import amount

LOOK_EVERY_US: Final = 60_000_000
"""How often the folder is searched. It is also searched whenever a store can be used again."""

WORK_US: Final = 300_000
"""After this time `work` returns, so that the bookkeeper's other tasks get their turn."""

_ENTRIES: Final = 500
"""How many rows are read while a call waits."""

T = TypeVar("T")


class WithStore(Protocol):
    """Calls a function with the store while no call uses it. Raises `StoreUnavailable` if there is no store."""

    def __call__(self, use: Callable[[Recoverable], T]) -> T:
        """Returns the function's result."""


class Leftovers:
    """The spill files that other wrappers of the same store and namespace left.

    Args:
        folder: Where the files are; None for nowhere.
        clock: The clock of this wrapper's buffers.
        wall: Wall-clock time.
        notify: Gets a line for each file that was taken in, that was damaged, or that cannot be taken in.

    Attributes:
        has_work: Whether `work` should be called soon.
    """

    def __init__(self, folder: SpillFolder | None, clock: Clock, wall: Clock, notify: Callable[[str], None]) -> None:
        self.has_work = folder is not None
        self._folder = folder
        self._clock = clock
        self._wall = wall
        self._notify = notify
        self._files: Iterator[SpillFile] = iter(())
        self._current: tuple[SpillFile, WriteBehindBuffer] | None = None
        self._refused: set[str] = set()  # files that cannot be read
        self._next_us: int | None = None  # when to search the folder again; None for at once

    def look_soon(self) -> None:
        """Let the next `work` search the folder, because a store can be used again."""
        self._next_us = None
        self.has_work = self._folder is not None

    def work(self, with_store: WithStore) -> None:
        """Take in some of the files. Does not raise: a failure is tried again after `LOOK_EVERY_US`."""
        now_us = self._clock()
        if self._folder is None or not (self.has_work or self._next_us is None or now_us >= self._next_us):
            return
        try:
            while current := self._current or self._open_next(self._folder, now_us):
                self._current = current
                file, buffer = current
                if not self._take_in(buffer, with_store, until_us=now_us + WORK_US):
                    self.has_work = True
                    return
                if file.damaged:
                    self._notify(f"{file.path} had {amount(file.damaged, 'damaged line')}: calls or audit rows are lost")
                self._current = None
            self._next_us = now_us + LOOK_EVERY_US
        except StoreUnavailable:
            self._next_us = now_us + LOOK_EVERY_US
        except Exception as error:
            if self._current:
                self._refuse(self._current[0], repr(error))
            self._current = None
        self.has_work = False

    def close(self) -> None:
        """Release the file that is not finished to other wrappers."""
        self._files = iter(())
        if self._current:
            self._current[0].close()
            self._current = None

    def _open_next(self, folder: SpillFolder, now_us: int) -> tuple[SpillFile, WriteBehindBuffer] | None:
        """Lock and read the next file whose wrapper has ended; None if there is none."""
        if self._next_us is None or now_us >= self._next_us:
            self._files, self._next_us = folder.left_behind(), now_us + LOOK_EVERY_US
        for file in self._files:
            if file.path in self._refused:
                file.close()
                continue
            try:
                return file, self._read(folder, file)
            except (OSError, ValueError, TypeError, LookupError) as error:
                self._refuse(file, repr(error))
        return None

    def _refuse(self, file: SpillFile, why: str) -> None:
        file.close()
        self._refused.add(file.path)
        self._notify(f"{file.path} cannot be taken in and is left as it is: {why}")

    def _read(self, folder: SpillFolder, file: SpillFile) -> WriteBehindBuffer:
        """The buffer that a file mirrors.

        Raises:
            OSError, ValueError, TypeError, LookupError: The file cannot be read, or is not a spill file.
        """
        buffer = WriteBehindBuffer(SpillLog(None, self._clock, self._wall, file=file))
        records = file.read()
        for header in records:  # a wrapper that was killed when it made the file wrote no header
            word, base, then_us, then_wall_us, members = header
            if word != HEADER:
                raise ValueError("it has no header")
            now_us = self._clock()
            shift_us = 0 if base == folder.base() else now_us - then_us - (self._wall() - then_wall_us)
            buffer.replay(records, members, now_us=now_us, shift_us=shift_us)
        return buffer

    def _take_in(self, buffer: WriteBehindBuffer, with_store: WithStore, *, until_us: int) -> bool:
        """Write the buffer of a file to the store, and remove the file. Returns False if that takes longer."""
        key = with_store(lambda store: _begin(store, buffer))
        if doubts := buffer.in_doubt:
            buffer.settle_doubts(_found(with_store, doubts, after=buffer.newest_before or 0))
        while not buffer.is_empty:
            if self._clock() > until_us:
                return False
            self._write_batch(buffer, with_store, key)
        while buffer.has_outcomes:
            _record_some(buffer, with_store)
        buffer.spill.clear()
        buffer.spill.sweep()
        if buffer.written:
            self._notify(f"a wrapper ended while the store was unavailable: {buffer.end_write_back()}")
        return True

    def _write_batch(self, buffer: WriteBehindBuffer, with_store: WithStore, key: bytes) -> None:
        batch = buffer.take()

        def put(store: Recoverable) -> list[int]:
            if store.args_key != key:
                raise StoreUnavailable("another store has taken its place")
            return write(store, batch, self._clock)

        with put_back_on_failure(buffer, batch):
            row_ids = with_store(put)
        buffer.wrote(batch, row_ids)


def _record_some(buffer: WriteBehindBuffer, with_store: WithStore) -> None:
    outcomes = buffer.settle(buffer.take_outcomes())
    try:
        with_store(lambda store: store.record(outcomes))
    except Exception:
        buffer.keep_outcomes(outcomes)
        raise


def _begin(store: Recoverable, buffer: WriteBehindBuffer) -> bytes:
    """Prepare a buffer for being written to a store. Returns the store's key."""
    buffer.assign_to(store.args_key)
    if buffer.newest_before is None:
        buffer.begin_write_back(newest_row_id(store))
    return store.args_key


def _found(with_store: WithStore, doubts: Mapping[tuple[str, int], int], *, after: int) -> dict[int, int]:
    """Find the rows in doubt among the store's rows.

    Args:
        with_store: Uses the store.
        doubts: The provisional row ids, by session and number.
        after: Only later rows than the one with this id are searched.

    Returns:
        The store's row ids of the rows that it has, by provisional row id.
    """
    entries = with_store(lambda store: store.entries(after=after))
    found: dict[int, int] = {}
    while some := with_store(lambda _: list(itertools.islice(entries, _ENTRIES))):
        for entry in some:
            provisional = doubts.get((str(entry.record.get("session")), int(str(entry.record["seq"]))))
            if provisional is not None:
                found[provisional] = entry.row_id
    return found
