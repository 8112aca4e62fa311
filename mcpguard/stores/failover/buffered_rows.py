"""The audit rows in a write-behind buffer: two bounded queues, by provisional row id."""

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Final

from mcpguard.session.audit import Row
from mcpguard.session.verdict import FORWARDED

MAX_ROWS: Final = 10_000
"""How many rows of forwarded calls are kept, and how many other rows."""

MAX_CHARS: Final = 16 * 1024 * 1024
"""The same bound for the text of the rows, which includes the arguments of calls if the audit log keeps them in full."""


def chars(row: Row) -> int:
    """How many characters of a row are of unbounded length."""
    return len(row.detail or "") + len(row.request_id or "")


class _Queue:
    """Rows, oldest first."""

    def __init__(self) -> None:
        self.rows: OrderedDict[int, Row] = OrderedDict()
        self.chars = 0

    def oldest(self) -> tuple[int, Row]:
        return next(iter(self.rows.items()))

    def add(self, row_id: int, row: Row) -> None:
        self.rows[row_id] = row
        self.chars += chars(row)

    def remove(self, row_id: int) -> None:
        row = self.rows.pop(row_id, None)
        if row is not None:
            self.chars -= chars(row)


class BufferedRows:
    """Keeps rows until a store takes them.

    Provisional row ids are negative, and a later row has a smaller id. Rows of forwarded calls are never dropped: if there is
    no room for one, the call must not be forwarded. Of the other rows the oldest are dropped.

    Attributes:
        dropped: How many rows were dropped. Its owner sets it back.
    """

    def __init__(self) -> None:
        self.dropped = 0
        self._forwarded, self._others = _Queue(), _Queue()

    def __len__(self) -> int:
        return len(self._forwarded.rows) + len(self._others.rows)

    @property
    def room_for_calls(self) -> int:
        """How many more calls may be forwarded."""
        return 0 if self._forwarded.chars >= MAX_CHARS else max(0, MAX_ROWS - len(self._forwarded.rows))

    def add(self, row_id: int, row: Row) -> None:
        """Add the newest row."""
        self._queue(row).add(row_id, row)
        self._drop()

    def put_back(self, rows: Iterable[tuple[int, Row]]) -> None:
        """Add rows that are older than all others, in order."""
        for row_id, row in reversed([*rows]):
            queue = self._queue(row)
            queue.add(row_id, row)
            queue.rows.move_to_end(row_id, last=False)
        self._drop()

    def take(self, most: int, most_chars: int) -> list[tuple[int, Row]]:
        """Remove and return the oldest rows.

        Args:
            most: How many.
            most_chars: How much text they may have together. One row is taken even if it has more.
        """
        taken: list[tuple[int, Row]] = []
        length = 0
        while len(self) and len(taken) < most:
            queue = max((one for one in (self._forwarded, self._others) if one.rows), key=lambda one: one.oldest()[0])
            row_id, row = queue.oldest()
            length += chars(row)
            if taken and length > most_chars:
                break
            taken.append((row_id, row))
            queue.remove(row_id)
        return taken

    def remove(self, row_ids: Iterable[int]) -> None:
        """Remove the rows that are still here."""
        for row_id in row_ids:
            self._forwarded.remove(row_id)
            self._others.remove(row_id)

    def drop_hashes(self) -> None:
        """Remove the hashes of arguments, because they were made with another store's key."""
        for queue in (self._forwarded, self._others):
            for row_id, row in queue.rows.items():
                queue.rows[row_id] = row._replace(args_hash=None)

    def items(self) -> Iterator[tuple[int, Row]]:
        """All rows with their ids, those of forwarded calls first."""
        return chain(self._forwarded.rows.items(), self._others.rows.items())

    def has_call(self, row_id: int) -> bool:
        """Whether a row is here, and is one of a forwarded call."""
        return row_id in self._forwarded.rows

    def _queue(self, row: Row) -> _Queue:
        return self._forwarded if row.decision in FORWARDED else self._others

    def _drop(self) -> None:
        others = self._others
        while len(others.rows) > MAX_ROWS or others.chars > MAX_CHARS:
            others.remove(others.oldest()[0])
            self.dropped += 1
