"""Takes in what wrappers have left in spill files that ended while their store could not be used.

Exactly once: what is about to be written is noted in the file first, and that it was written afterwards. Where a file does not
tell the latter, admissions are told by the same name once more, and the rows are looked for in the store.
"""

import itertools
from collections.abc import Callable, Iterator
from typing import Final, Protocol, TypeVar

from mcpguard.errors import StoreUnavailable
from mcpguard.stores.api import Clock, Store
from mcpguard.stores.failover.spill import HEADER, SpillFile, SpillFolder, SpillLog
from mcpguard.stores.failover.write_behind import WriteBehindBuffer, newest_row_id, write

LOOK_EVERY_US: Final = 60_000_000
"""How often files are looked for, beside once when a store is taken up."""

WORK_US: Final = 300_000
"""How long is worked at them before the bookkeeper's other tasks get their turn."""

_ENTRIES: Final = 500
"""How many rows are read before a call gets its turn."""

T = TypeVar("T")


class WithStore(Protocol):
    """Calls a function with the store, while no call uses it; raises `StoreUnavailable` if there is none now."""

    def __call__(self, use: Callable[[Store], T]) -> T:
        """What the function returns."""


class Leftovers:
    """What other wrappers of the same store and namespace have left.

    Args:
        folder: Where; None for nowhere.
        clock: The clock that is the buffers' here.
        wall: Wall-clock time.
        notify: Gets a line for each file that was taken in.
    """

    def __init__(self, folder: SpillFolder | None, clock: Clock, wall: Clock, notify: Callable[[str], None]) -> None:
        self._folder = folder
        self._clock = clock
        self._wall = wall
        self._notify = notify
        self._files: Iterator[SpillFile] = iter(())
        self._current: tuple[SpillFile, WriteBehindBuffer] | None = None
        self._refused: set[str] = set()  # files that nothing can be done with
        self._next_us: int | None = None
        self.is_waited_for = folder is not None
        """Whether there may be something to do now."""

    def look_soon(self) -> None:
        """A store has been taken up: there may be files for it."""
        self._next_us = None
        self.is_waited_for = self._folder is not None

    def work(self, with_store: WithStore) -> None:
        """Take in some of what there is. Does not raise: what does not work now is tried again later."""
        now_us = self._clock()
        if self._folder is None or not (self.is_waited_for or self._next_us is None or now_us >= self._next_us):
            return
        try:
            while self._current or self._open_next(self._folder, now_us):
                if not self._take_in(with_store, until_us=now_us + WORK_US):
                    self.is_waited_for = True
                    return
            self._next_us = now_us + LOOK_EVERY_US
        except StoreUnavailable:
            self._next_us = now_us + LOOK_EVERY_US
        except Exception as error:
            if self._current:
                self._refuse(self._current[0], repr(error))
            self._current = None
        self.is_waited_for = False

    def close(self) -> None:
        """Leave to others what is not done."""
        self._files = iter(())
        if self._current:
            self._current[0].close()
            self._current = None

    def _open_next(self, folder: SpillFolder, now_us: int) -> bool:
        """Lock and read the next file that nobody holds; whether there is one."""
        if self._next_us is None or now_us >= self._next_us:
            self._files, self._next_us = folder.left_behind(), now_us + LOOK_EVERY_US
        for file in self._files:
            if file.path.name in self._refused:
                file.close()
                continue
            try:
                self._current = file, self._read(folder, file)
            except (OSError, ValueError, TypeError, LookupError) as error:
                self._refuse(file, repr(error))
            else:
                return True
        return False

    def _refuse(self, file: SpillFile, why: str) -> None:
        file.close()
        self._refused.add(file.path.name)
        self._notify(f"{file.path} cannot be taken in and is left as it is: {why}")

    def _read(self, folder: SpillFolder, file: SpillFile) -> WriteBehindBuffer:
        """The buffer whose log a file is.

        Raises:
            OSError, ValueError, TypeError, LookupError: It is none, or one of another program.
        """
        buffer = WriteBehindBuffer(SpillLog(None, self._clock, self._wall, file=file))
        records = file.read()
        for header in records:  # there is none in a file that was made, and nothing written
            word, base, then_us, then_wall_us, members = header
            if word != HEADER:
                raise ValueError("it has no header")
            now_us = self._clock()
            shift_us = 0 if base == folder.base() else now_us - then_us - (self._wall() - then_wall_us)
            buffer.replay(records, members, now_us=now_us, shift_us=shift_us)
        return buffer

    def _take_in(self, with_store: WithStore, *, until_us: int) -> bool:
        """Write what is in the current file to the store, and remove the file; False if that takes longer."""
        assert self._current  # noqa: S101 - the caller has looked
        _, buffer = self._current
        key = with_store(lambda store: _begin(store, buffer))
        if doubts := buffer.in_doubt:
            buffer.are_there(_there(with_store, doubts, buffer.newest_before or 0))
        while not buffer.is_empty:
            if self._clock() > until_us:
                return False
            self._write_batch(buffer, with_store, key)
        while buffer.has_outcomes:
            _record_some(buffer, with_store)
        buffer.spill.clear()
        self._current = None
        if buffer.written:
            self._notify(f"a wrapper ended while the store was unavailable: {buffer.all_written()}")
        return True

    def _write_batch(self, buffer: WriteBehindBuffer, with_store: WithStore, key: bytes) -> None:
        batch = buffer.take()

        def put(store: Store) -> list[int]:
            if store.args_key != key:
                raise StoreUnavailable("another store has taken its place")
            return write(store, batch, self._clock)

        try:
            handles = with_store(put)
        except Exception as error:
            buffer.put_back(batch, error)
            raise
        buffer.wrote(batch, handles)


def _record_some(buffer: WriteBehindBuffer, with_store: WithStore) -> None:
    outcomes = buffer.settle(buffer.outcomes())
    try:
        with_store(lambda store: store.record(outcomes))
    except Exception:
        buffer.ended(outcomes)
        raise


def _begin(store: Store, buffer: WriteBehindBuffer) -> bytes:
    """Prepare a buffer for being written to a store, whose key is returned."""
    buffer.belongs_to(store.args_key)
    if buffer.newest_before is None:
        buffer.begin_to_write(newest_row_id(store))
    return store.args_key


def _there(with_store: WithStore, doubts: dict[tuple[str, int], int], place: int) -> list[int]:
    """Which of some rows are in the store after a place."""
    entries = with_store(lambda store: store.entries(after=place))
    found: list[int] = []
    while some := with_store(lambda _: list(itertools.islice(entries, _ENTRIES))):
        keys = [(str(entry.record.get("session")), entry.record.get("seq")) for entry in some]
        found += [doubts[key] for key in keys if key in doubts]
    return found
