"""Finds the rows that a decision without a reply has written, so that they are not written a second time."""

import time
from collections.abc import Callable, Iterator, Sequence

from mcpguard.light_typing import Any, Final
from mcpguard.session.audit import Row, session_of
from mcpguard.stores.redis import rows

SEARCHED_ROWS: Final = 20_000
SEARCHED_US: Final = 10_000_000
"""How many rows are searched for the rows of a decision without a reply, and how long before the decision the search begins."""

NEARBY_US: Final = 200_000
"""Rows within this time of the decision are searched even if many rows were written since."""

_FIRST_PAGE: Final = 8


def duplicates(
    ask: Callable[..., list[Any]], streams: Sequence[str], first: Row, *, age_us: int, made_us: int, timeout_s: float
) -> list[tuple[int, bytes]]:
    """The streams and stream ids of rows that the session of `first` has already written, from `first.seq` on.

    The decision wrote its rows near the time of `first`. Rows that were written back since are among the newest. A call may
    wait for this search, so it ends after half of the call's budget.

    Args:
        ask: Sends commands, and returns their replies.
        streams: The keys of the streams.
        first: The first of the rows that are to be written now.
        age_us: How long ago `first` was made.
        made_us: When that was, by the server's clock.
        timeout_s: The call's budget.
    """
    end_s = time.monotonic() + timeout_s / 2
    session = session_of(first)
    begin_us = made_us - NEARBY_US - int(timeout_s * 1_000_000)  # `first` was made when the reply did not come
    nearby = ("XRANGE", str(max(0, begin_us) // 1000), str(max(0, made_us + NEARBY_US) // 1000))
    newest = ("XREVRANGE", "+", str(max(0, made_us - SEARCHED_US) // 1000))
    found: dict[tuple[int, bytes], None] = {}
    for stream in (1, 2) if age_us > NEARBY_US else ():
        for stream_id, seq in _rows_of(ask, streams[stream - 1], session, *nearby, end_s=end_s - timeout_s / 4):
            if seq >= first.seq:
                found[stream, stream_id] = None
    for stream in (1, 2):
        for stream_id, seq in _rows_of(ask, streams[stream - 1], session, *newest, end_s=end_s):
            if seq < first.seq:
                break
            found[stream, stream_id] = None
    return list(found)


def _rows_of(
    ask: Callable[..., list[Any]], key: str, session: str, command: str, begin: str, end: str, *, end_s: float
) -> Iterator[tuple[bytes, int]]:
    """Stream ids and numbers of a session's rows in a stream, in the order of a command, until a time.

    The first page is small, because rows may be long.
    """
    count, seen, needle = _FIRST_PAGE, 0, session.encode()
    while seen < SEARCHED_ROWS:
        found = ask((command, key, begin, end, "COUNT", count))[0]
        for stream_id, fields in found:
            if any(needle in part for part in fields):  # parsing all rows would take long
                one = rows.stored(stream_id, fields, None)
                if one is not None and session_of(one.row) == session:
                    yield stream_id, one.row.seq
        seen += len(found)
        if len(found) < count or time.monotonic() > end_s:
            return
        count = rows.next_count(count, found)
        begin = "(" + found[-1][0].decode()
