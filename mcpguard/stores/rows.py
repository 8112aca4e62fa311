"""How the rows of a store are read, page by page, and counted; and what is told of those that are lost or damaged."""

from abc import ABC, abstractmethod
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator

from mcpguard.errors import StoreUnavailable
from mcpguard.light_typing import Final
from mcpguard.session.audit import axis_of
from mcpguard.stores.api import AuditEntry, Group, StoredRow, Tally, Wanted

_NAMED_ROWS: Final = 100
"""How many damaged rows are named."""


class Pages(ABC):
    """The ways to read a store's audit rows, all of them by `_pages`."""

    @abstractmethod
    def _pages(self, after: int, wanted: Wanted | None, *, newest_first: bool = False) -> Iterator[tuple[list[StoredRow], int]]:
        """The wanted rows, page by page; and the id of the last row that a page looked at, if they ascend."""

    def entries(self, *, after: int = 0, wanted: Wanted | None = None) -> Iterator[AuditEntry]:
        """See `AuditReader`."""
        return (one.entry for page, _ in self._pages(after, wanted) for one in page)

    def newest(self, *, wanted: Wanted | None = None) -> Iterator[AuditEntry]:
        """See `AuditReader`."""
        return (one.entry for page, _ in self._pages(0, wanted, newest_first=True) for one in page)

    def rows(self, *, after: int = 0, wanted: Wanted | None = None) -> Iterator[list[StoredRow]]:
        """See `Readable`."""
        return (page for page, _ in self._pages(after, wanted))

    def tally(self, *, after: int = 0, wanted: Wanted | None = None) -> Iterator[Tally]:
        """See `Readable`."""
        return (tally(page, last_id) for page, last_id in self._pages(after, wanted))


class Losses:
    """What was told of the losses of a store, so that each is told once.

    Args:
        where: The store, for messages.
        notify: Is told a line for each loss. Without it a damaged row is an error.
    """

    def __init__(self, where: str, notify: Callable[[str], None] | None) -> None:
        self._where = where
        self._notify = notify
        self._told: set[str] = set()

    def tell(self, lost: str) -> None:
        """Tell what is lost, if that was not told before. An empty text tells nothing."""
        if lost and self._notify is not None and lost not in self._told:
            self._told.add(lost)
            self._notify(lost)

    def skip(self, row_id: int) -> None:
        """Tell that a row is damaged, and left out.

        Raises:
            StoreUnavailable: Nobody is told.
        """
        if self._notify is None:
            hint = "mcpguard audit tail and export leave it out"
            raise StoreUnavailable(f"row {row_id} of {self._where} is damaged", hint)
        if len(self._told) <= _NAMED_ROWS:
            what = "is damaged" if len(self._told) < _NAMED_ROWS else "and others are damaged"
            self.tell(f"row {row_id} of {self._where} {what}, and left out")


HOUR_US: Final = 3600 * 1_000_000

DIGITS: Final = 3
"""How many digits of a duration are kept. The rest becomes zero, so half a unit of the last digit is at most 0.5 %."""


def rounded_us(duration_us: int) -> int:
    """A duration in µs, rounded down to `DIGITS` digits.

    >>> rounded_us(999), rounded_us(1239), rounded_us(123_999)
    (999, 1230, 123000)
    """
    unit = unit_us(duration_us)
    return duration_us // unit * unit


def unit_us(duration_us: int) -> int:
    """The unit of the last digit that `rounded_us` keeps of a duration."""
    return int(10 ** max(0, len(str(duration_us)) - DIGITS))


def tally(rows: Iterable[StoredRow], last_id: int) -> Tally:
    """Count rows.

    Args:
        rows: The rows.
        last_id: The id of the last row that was looked at.
    """
    calls: defaultdict[Group, Counter[int | None]] = defaultdict(Counter)
    for _, row, outcome, duration_us in rows:
        group = Group(
            row.context, axis_of(row.decision, row.reported, row.detail), row.decision, outcome, row.time_us // HOUR_US
        )
        calls[group][None if duration_us is None else rounded_us(duration_us)] += row.repeats or 1
    return Tally(last_id, calls)
