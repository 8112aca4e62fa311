"""Follows the audit log across a replacement of its store."""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from mcpguard.config import Settings
from mcpguard.errors import StoreUnavailable
from mcpguard.session.verdict import FORWARDED
from mcpguard.stores.address import SqliteAddress
from mcpguard.stores.api import Readable, StoredRow, Wanted
from mcpguard.stores.clock import wall_us
from mcpguard.stores.sqlite.database import identity

POLL_S: Final = 0.25
"""How often new rows are looked for."""

OUTCOME_S: Final = 10.0
"""How long a row waits for its outcome. The rows after it wait, too, so that their order stays."""

_Sleep = Callable[[float], None]


def follow(
    settings: Settings,
    wanted: Wanted,
    say: Callable[[str], None],
    sleep: _Sleep = time.sleep,
    *,
    begin: Callable[[Readable], int] = lambda _: 0,
    outcome_s: float = OUTCOME_S,
    at_once: bool = False,
) -> Iterator[tuple[Readable, Sequence[StoredRow]]]:
    """The wanted rows, those that exist and then those that are written, some at a time and with their store.

    Before each wait it gives a sequence, even if there are no new rows. This ends only if the wanted time ends, and with it the
    time in which its calls could end. Earlier rows may still come: from a machine whose clock is behind, or after an outage of
    the store.

    Args:
        settings: They name the store, which need not exist yet.
        wanted: Which rows. Its outcomes are of rows that have ended.
        say: Tells a person what happened to the store.
        sleep: Waits for this many seconds.
        begin: Returns the id of the row after which to begin in a store that exists already. Of a store that comes later, all
            rows are given.
        outcome_s: How long a row waits for its outcome.
        at_once: Whether rows do not wait. If their outcomes come later, nothing tells so.

    Raises:
        StoreUnavailable: The store cannot be read.
    """

    def is_over() -> bool:
        return wanted.until_us is not None and wall_us() >= wanted.until_us + outcome_s * 1_000_000

    is_new = not settings.address.exists()
    if is_new:
        say(f"no audit log yet: there is no store at {settings.address.shown}")
    while True:
        while not settings.address.exists():
            if is_over():
                return
            sleep(POLL_S)
        with until_replaced(settings) as is_replaced, settings.read_store() as store:
            rows = _Rows(store, wanted, 0 if is_new else begin(store), outcome_s)
            while True:
                ends = is_over()
                is_last = ends or is_replaced()  # asked first: rows written before the replacement are in the open file
                yield from ((store, some) for some in rows.new(none_waits=is_last or at_once))
                if ends:
                    return
                if is_last:
                    break
                sleep(POLL_S)
        is_new = True
        say(f"{settings.address.shown} was removed or replaced; following the new store from its first row")


class _Rows:
    """The rows of one store, which wait for their outcomes."""

    def __init__(self, store: Readable, wanted: Wanted, after: int, outcome_s: float) -> None:
        self._store = store
        self._wanted = wanted
        self._last_id = after
        self._outcome_s = outcome_s
        self._waiting = (0, 0.0)  # the id of the first row without an outcome, and until when it is waited for

    def new(self, *, none_waits: bool) -> Iterator[Sequence[StoredRow]]:
        """The rows that were written, or have ended, since the last time; at least one sequence."""
        known_until_s = time.monotonic() + self._outcome_s
        for page in self._store.rows(after=self._last_id, wanted=self._wanted._replace(outcomes=None)):
            ready: list[StoredRow] = []
            for one in page:
                if (
                    one.row.decision in FORWARDED
                    and one.outcome is None
                    and not none_waits
                    and not self._has_waited(one, known_until_s)
                ):
                    yield ready
                    return
                self._last_id = one.row_id
                if self._wanted.outcomes is None or one.outcome in self._wanted.outcomes:
                    ready.append(one)
            yield ready
        yield ()

    def _has_waited(self, one: StoredRow, until_s: float) -> bool:
        if self._waiting[0] != one.row_id:
            age_s = max(0.0, time.time() - one.row.time_us / 1_000_000)
            self._waiting = one.row_id, until_s - age_s
        return time.monotonic() >= self._waiting[1]


@contextlib.contextmanager
def until_replaced(settings: Settings) -> Iterator[Callable[[], bool]]:
    """Work with a store until its file is removed or replaced. If it was, errors of the old file are ignored.

    Gives a function that tells whether it was. A Redis store never is.
    """
    file = _file_of(settings)  # asked before the store is opened, so that a replacement in between is noticed
    try:
        yield lambda: _file_of(settings) != file
    except StoreUnavailable:
        if _file_of(settings) == file:
            raise


def _file_of(settings: Settings) -> tuple[int, int] | None:
    """The identity of an SQLite store's file. None for a Redis store, which reports an error when it goes away."""
    if not isinstance(settings.address, SqliteAddress):
        return None
    try:
        return identity(settings.address.path)
    except OSError:
        return (0, 0)  # opening the store reports the error
