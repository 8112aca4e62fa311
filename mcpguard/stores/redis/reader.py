"""Reads a namespace: its counters, and its audit rows, which are in two streams and are joined with their outcomes.

Also finds the rows that a decision without a reply has written, so that they are not written a second time.
"""

from collections.abc import Callable, Iterator, Sequence
from operator import itemgetter
from time import monotonic

from mcpguard.light_typing import Final
from mcpguard.limiter import sliding
from mcpguard.limiter.plan import Counter, label_parts
from mcpguard.limiter.sliding import EMPTY, State
from mcpguard.session.audit import Outcome, Row, session_of
from mcpguard.stores.api import CounterUse, StoredRow, Wanted
from mcpguard.stores.redis import layout
from mcpguard.stores.redis.link import RedisCommand, scan
from mcpguard.stores.redis.server import RedisServer, parse_time_us
from mcpguard.stores.rows import Pages

_FIRST_PAGE: Final = 1
"""How many rows of each stream are read first. Who needs the newest row waits for no other, however long the rows are."""

_MOST_ROWS: Final = 500
"""How many rows of a stream are read at once."""

_LONG_BYTES: Final = 1 << 20
"""A reply of this length arrives in time."""

SEARCHED_ROWS: Final = 20_000
SEARCHED_US: Final = 10_000_000
"""How many rows are searched for the rows of a decision without a reply, and how long before the decision the search begins."""

NEARBY_US: Final = 200_000
"""Rows within this time of the decision are searched even if many rows were written since."""

_Found = tuple[bytes, Sequence[bytes]]
"""A row as its stream returns it: stream id and fields."""


class RedisReader(Pages):
    """Reads a namespace's counters and audit rows.

    Args:
        server: The namespace.
        skipped: Is told the id of a row that is left out because it is damaged.
    """

    def __init__(self, server: RedisServer, skipped: Callable[[int], None]) -> None:
        self._server = server
        self._skipped = skipped

    def counters(self) -> list[CounterUse]:
        """See `Store`."""
        index: dict[bytes, bytes] = {}
        for _, piece in scan(lambda command: self._server.ask(command)[0], self._server.keys.labels):
            index |= piece
        uses: list[CounterUse] = []
        counters = [Counter(int(key), label.decode(), label_parts(label.decode()).window_us) for key, label in index.items()]
        for some in layout.batches(counters):
            found, now_us = self.peek(some)
            for (_, label, window_us), found_state in zip(some, found, strict=True):
                live = sliding.live(found_state, window_us, now_us) if window_us else EMPTY
                used = sliding.used(live) if window_us else len(found_state)
                uses += [CounterUse(label, used, live)] if used else []
        return uses

    def peek(self, counters: Sequence[Counter]) -> tuple[list[State], int]:
        """See `Store`."""
        reading: list[RedisCommand] = [
            ("GET", self._server.keys.log(one.id))
            if one.window_us
            else ("ZRANGE", self._server.keys.in_flight(one.id), 0, -1, "WITHSCORES")
            for one in counters
        ]
        time, *replies = self._server.ask(("TIME",), *reading)
        now_us = self._server.clock() if self._server.clock else parse_time_us(time)
        return [
            layout.log(reply) if one.window_us else layout.calls(_with_lease(reply, now_us))
            for one, reply in zip(counters, replies, strict=True)
        ], now_us

    def _pages(self, after: int, wanted: Wanted | None, *, newest_first: bool = False) -> Iterator[tuple[list[StoredRow], int]]:
        """See `Pages`."""
        least = layout.first_id(wanted.written_since_us) if wanted else 0
        order = "XRANGE", "(" + layout.stream_id(max(after, least - 1)), "+"
        if newest_first:
            order = "XREVRANGE", "+", layout.stream_id(least)
        for found in self._read(self._streams(wanted), *order):
            yield self._joined(found, wanted), layout.row_id(found[-1][0])

    def _streams(self, wanted: Wanted | None) -> Sequence[str]:
        """The keys of the streams that may have wanted rows."""
        both = self._server.keys.audit[:2]
        if wanted is None or wanted.decisions is None:
            return both
        return [key for number, key in enumerate(both, 1) if any(layout.stream(one) == number for one in wanted.decisions)]

    def _read(self, streams: Sequence[str], command: str, begin: str, end: str) -> Iterator[list[_Found]]:
        """Rows of streams, in the order of a command, some at a time: each time those of one transaction."""
        count, sign = _FIRST_PAGE, -1 if command == "XREVRANGE" else 1
        while True:
            asked = [(command, key, begin, end, "COUNT", count) for key in streams]
            pages: list[list[_Found]] = self._server.ask_together(*asked)
            found = [(sign * layout.row_id(one[0]), one) for page in pages for one in page]
            if not found:
                return
            found.sort(key=itemgetter(0))
            for page in pages:
                if len(page) == count:  # the stream may have rows after the last one of the page
                    last = sign * layout.row_id(page[-1][0])
                    found = [one for one in found if one[0] <= last]
            yield [one for _, one in found]
            begin = "(" + found[-1][1][0].decode()
            count = _next_count(count, [one for page in pages for one in page])

    def _joined(self, found: Sequence[_Found], wanted: Wanted | None) -> list[StoredRow]:
        """The wanted rows, with their outcomes."""
        outcomes = self._outcomes([stream_id for stream_id, _ in found])
        joined: list[StoredRow] = []
        for (stream_id, fields), outcome in zip(found, outcomes, strict=True):
            if (one := layout.stored(stream_id, fields, outcome)) is None:
                self._skipped(layout.row_id(stream_id))
            elif wanted is None or wanted.admits_row(one.row, one.outcome):
                joined.append(one)
        return joined

    def outcomes_of(self, row_ids: Sequence[int]) -> list[Outcome]:
        """See `Readable`."""
        values = self._outcomes([layout.stream_id(row_id) for row_id in row_ids])
        return [layout.parse_outcome(row_id, value) for row_id, value in zip(row_ids, values, strict=True) if value is not None]

    def _outcomes(self, stream_ids: Sequence[bytes | str]) -> Sequence[bytes | None]:
        return self._server.ask(("HMGET", self._server.keys.audit[2], *stream_ids))[0] if stream_ids else ()

    def _written(self, first: Row, age_us: int) -> list[StoredRow]:
        """The rows that the session of `first` has already written, from `first.seq` on.

        The decision wrote its rows near the time of `first`. Rows that were written back since are among the newest. A call may
        wait for this search, so it ends after half of the call's budget.

        Args:
            first: The first of the rows that are to be written now. It was made when the reply did not come.
            age_us: How long ago that was.
        """
        timeout_s = self._server.timeout_s
        end_s = monotonic() + timeout_s / 2
        made_us = self._server.now_us() - age_us
        begin_us = made_us - NEARBY_US - round(timeout_s * 1_000_000)
        nearby = ("XRANGE", _first_ms(begin_us), _first_ms(made_us + NEARBY_US))
        newest = ("XREVRANGE", "+", _first_ms(made_us - SEARCHED_US))
        found: dict[int, StoredRow] = {}
        if age_us > NEARBY_US:
            for one in self._rows_of(session_of(first), *nearby, end_s=end_s - timeout_s / 4):
                if one.row.seq >= first.seq:
                    found[one.row_id] = one
        for one in self._rows_of(session_of(first), *newest, end_s=end_s):
            if one.row.seq < first.seq:
                break
            found[one.row_id] = one
        return list(found.values())

    def _rows_of(self, session: str, command: str, begin: str, end: str, *, end_s: float) -> Iterator[StoredRow]:
        """A session's rows, in the order of a command, until a time."""
        seen, needle = 0, session.encode()
        for page in self._read(self._server.keys.audit[:2], command, begin, end):
            for stream_id, fields in page:
                if any(needle in part for part in fields):  # parsing all rows would take long
                    one = layout.stored(stream_id, fields, None)
                    if one is not None and session_of(one.row) == session:
                        yield one
            seen += len(page)
            if seen >= SEARCHED_ROWS or monotonic() > end_s:
                return


def _first_ms(time_us: int) -> str:
    """The beginning of the stream ids of a time."""
    return str(max(0, time_us) // 1000)


def _with_lease(reply: Sequence[bytes], now_us: int) -> list[bytes]:
    """The ids in the reply to `ZRANGE … WITHSCORES` whose leases have not ended."""
    return [member for member, until in zip(reply[::2], reply[1::2], strict=True) if float(until) > now_us]


def _next_count(count: int, found: Sequence[tuple[bytes, Sequence[bytes]]]) -> int:
    """How many rows of a stream to read next: more and more, unless the rows are so long that the reply would be, too.

    Args:
        count: How many were read last.
        found: The rows that came, with their stream ids. There is at least one.
    """
    size = sum([len(part) for _, fields in found for part in fields])
    return max(1, min(8 * count, _MOST_ROWS, _LONG_BYTES * count // size))
