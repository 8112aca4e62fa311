"""Reads a namespace: its counters, and its audit rows, which are in two streams and are joined with their outcomes."""

from collections.abc import Callable, Iterator, Sequence
from operator import itemgetter

from mcpguard.light_typing import Any, Final
from mcpguard.limiter import sliding
from mcpguard.limiter.plan import Counter, label_parts
from mcpguard.limiter.sliding import EMPTY, State
from mcpguard.session.audit import Outcome
from mcpguard.stores.api import Clock, CounterUse, Entry, StoredRow, Tally, Wanted
from mcpguard.stores.redis import rows
from mcpguard.stores.redis.link import Command, scan
from mcpguard.stores.redis.states import counter_key, state
from mcpguard.stores.tally import tally

_FIRST_PAGE: Final = 1
"""How many rows of each stream are read first. Who needs the newest row waits for no other, however long the rows are."""

_BATCH: Final = 500
"""How many counters are read at once."""

_Found = tuple[bytes, Sequence[bytes]]
"""A row as its stream returns it: stream id and fields."""


class Reader:
    """Reads a namespace's counters and audit rows.

    Args:
        ask: Sends commands, and returns their replies.
        checked: Returns a reply within a transaction's reply, or raises what it tells.
        skipped: Is told the id of a row that is left out because it is damaged.
        prefix: The beginning of the namespace's keys.
        clock: The store's time instead of the server's.
    """

    def __init__(
        self,
        ask: Callable[..., list[Any]],
        checked: Callable[[Any], Any],
        skipped: Callable[[int], None],
        prefix: str,
        clock: Clock | None,
    ) -> None:
        self._prefix = prefix
        self._clock = clock
        self._skipped = skipped
        self._ask = ask
        self._checked = checked
        *self._both, self._outcomes_key, _ = rows.audit_keys(prefix)

    def held(self) -> list[CounterUse]:
        """See `Store`."""
        index: dict[bytes, bytes] = {}
        for piece in scan(lambda command: self._ask(command)[0], self._prefix + "counters"):
            index |= piece
        held: list[CounterUse] = []
        counters = [Counter(int(key), label.decode(), label_parts(label.decode()).window_us) for key, label in index.items()]
        for at in range(0, len(counters), _BATCH):
            some = counters[at : at + _BATCH]
            found, now_us = self.peek(some)
            for (_, label, window_us), found_state in zip(some, found, strict=True):
                live = sliding.live(found_state, window_us, now_us) if window_us else EMPTY
                used = sliding.used(live) if window_us else len(found_state)
                held += [CounterUse(label, used, live)] if used else []
        return held

    def peek(self, counters: Sequence[Counter]) -> tuple[list[State], int]:
        """See `Store`."""
        logs = [counter_key(self._prefix, counter.id) for counter in counters if counter.window_us]
        caps = [counter_key(self._prefix, counter.id, window_us=0) for counter in counters if not counter.window_us]
        read: list[Command] = [("MGET", *logs)] if logs else []
        read += [("ZRANGE", key, 0, -1, "WITHSCORES") for key in caps]
        server_time, *replies = self._ask(("TIME",), *read)
        now_us = self._clock() if self._clock else parse_time_us(server_time)
        values = iter(replies.pop(0) if logs else ())
        in_flight = iter([_with_lease(reply, now_us) for reply in replies])
        found = [state(next(values if one.window_us else in_flight), one.window_us) for one in counters]
        return found, now_us

    def entries(self, *, after: int = 0, wanted: Wanted | None = None) -> Iterator[Entry]:
        """See `Readable`."""
        for page in self.rows(after=after, wanted=wanted):
            yield from (one.entry for one in page)

    def rows(self, *, after: int = 0, wanted: Wanted | None = None) -> Iterator[list[StoredRow]]:
        """See `Readable`."""
        for found in self._pages(after, wanted):
            yield self._joined(found, wanted)

    def tally(self, *, after: int = 0, wanted: Wanted | None = None) -> Iterator[Tally]:
        """See `Readable`."""
        for found in self._pages(after, wanted):
            yield tally(self._joined(found, wanted), rows.row_id(found[-1][0]))

    def _pages(self, after: int, wanted: Wanted | None) -> Iterator[list[_Found]]:
        """The rows that may be wanted, oldest first, some at a time."""
        after = max(after, rows.first_id(wanted.written_since_us) - 1 if wanted else 0)
        return self._read(self._streams(wanted), "XRANGE", "(" + rows.stream_id(after), "+")

    def newest(self, *, wanted: Wanted | None = None) -> Iterator[Entry]:
        """See `Readable`."""
        first = rows.stream_id(rows.first_id(wanted.written_since_us)) if wanted else "-"
        for found in self._read(self._streams(wanted), "XREVRANGE", "+", first):
            yield from (one.entry for one in self._joined(found, wanted))

    def _streams(self, wanted: Wanted | None) -> Sequence[str]:
        """The keys of the streams that may have wanted rows."""
        if wanted is None or wanted.decisions is None:
            return self._both
        return [key for number, key in enumerate(self._both, 1) if any(rows.stream(one) == number for one in wanted.decisions)]

    def _read(self, streams: Sequence[str], command: str, begin: str, end: str) -> Iterator[list[_Found]]:
        """Rows of streams, in the order of a command, some at a time: each time those of one transaction."""
        count, sign = _FIRST_PAGE, -1 if command == "XREVRANGE" else 1
        while True:
            asked = [(command, key, begin, end, "COUNT", count) for key in streams]
            *_, replies = self._ask(("MULTI",), *asked, ("EXEC",))
            pages: list[list[_Found]] = list(map(self._checked, replies))
            found = [(sign * rows.row_id(one[0]), one) for page in pages for one in page]
            if not found:
                return
            found.sort(key=itemgetter(0))
            for page in pages:
                if len(page) == count:  # the stream may have rows after the last one of the page
                    last = sign * rows.row_id(page[-1][0])
                    found = [one for one in found if one[0] <= last]
            yield [one for _, one in found]
            begin = "(" + found[-1][1][0].decode()
            count = rows.next_count(count, [one for page in pages for one in page])

    def _joined(self, found: Sequence[_Found], wanted: Wanted | None) -> list[StoredRow]:
        """The wanted rows, with their outcomes."""
        outcomes = self._outcomes([stream_id for stream_id, _ in found])
        joined: list[StoredRow] = []
        for (stream_id, fields), outcome in zip(found, outcomes, strict=True):
            if (one := rows.stored(stream_id, fields, outcome)) is None:
                self._skipped(rows.row_id(stream_id))
            elif wanted is None or wanted.admits_row(one.row, one.outcome):
                joined.append(one)
        return joined

    def outcomes_of(self, row_ids: Sequence[int]) -> list[Outcome]:
        """See `Readable`."""
        values = self._outcomes([rows.stream_id(row_id) for row_id in row_ids])
        return [rows.parse_outcome(row_id, value) for row_id, value in zip(row_ids, values, strict=True) if value is not None]

    def _outcomes(self, stream_ids: Sequence[bytes | str]) -> Sequence[bytes | None]:
        return self._ask(("HMGET", self._outcomes_key, *stream_ids))[0] if stream_ids else ()


def parse_time_us(reply: Sequence[bytes]) -> int:
    """The reply to `TIME` in microseconds."""
    seconds, us = reply
    return int(seconds) * 1_000_000 + int(us)


def _with_lease(reply: Sequence[bytes], now_us: int) -> list[bytes]:
    """The ids in the reply to `ZRANGE … WITHSCORES` whose leases have not ended."""
    return [member for member, until in zip(reply[::2], reply[1::2], strict=True) if float(until) > now_us]
