"""What the script that decides is sent, and what it answers."""

import struct
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final

from mcpguard.core.audit import MAX_DENIED_CHARS, fragment, shortened
from mcpguard.core.journal import BURST_BYTES, ROW_BYTES, Journal
from mcpguard.core.policy import Counter, Plan
from mcpguard.core.text import compact
from mcpguard.core.verdict import Decided, DecisionRequest, Verdict
from mcpguard.stores.redis import rows, states

_TOLD: Final = 6
"""How many values the script returns for each call, not counting the limits that had no room."""

_WHOLE_ALLOWANCE: Final = compact((ROW_BYTES, BURST_BYTES, {}, {}))
"""What a session that begins has of `Journal.allowance`."""

_LIMIT: Final = struct.Struct("<qqIII")

_DECIDED: Final[dict[bytes, Decided]] = {
    b"allowed": "allowed",
    b"rate_limited": "rate_limited",
    b"denied": "denied",
    b"would_deny": "would_deny",
}


def counters_of(requests: Sequence[DecisionRequest]) -> tuple[Counter, ...]:
    """The counters of all charges that are to be decided, each once."""
    if len(requests) == 1:
        return () if requests[0].decided is not None else requests[0].plan.counters
    found = {counter.id: counter for request in requests if request.decided is None for counter in request.plan.counters}
    return tuple(found.values())


@lru_cache(maxsize=512)
def named(prefix: str, counters: tuple[Counter, ...]) -> tuple[tuple[str, ...], str]:
    """The keys of `charge.lua` in a namespace, and its first argument."""
    keys = (*rows.keys(prefix), prefix + "counters", *[states.counter_key(prefix, counter.id) for counter in counters])
    return keys, "".join([f"{counter.label}\0" for counter in counters])


bounds: Final = struct.Struct("<qqq").pack
"""The second argument: until when, by its own clock, the server may begin to decide; the session's newest row number; and how
much memory the audit may take."""

appended: Final = struct.Struct("<qq").pack
"""The first argument of `append.lua`: how much memory the audit may take, and how many rows are replaced."""


def arguments(
    requests: Sequence[DecisionRequest], counters: Sequence[Counter], journal: Journal, time_us: int
) -> list[bytes | str]:
    """The rest of what `charge.lua` is sent: the session's allowance, and two strings for each call."""
    place = {counter.id: at for at, counter in enumerate(counters, 1)}
    allowance = journal.allowance(time_us)
    told: list[bytes | str] = [_WHOLE_ALLOWANCE if allowance is None else compact(allowance)]
    for request in requests:
        remembered = journal.remembered(request, time_us)
        memory = "" if remembered is None else compact([list(map(int, remembered[0])), remembered[1]])
        detail = compact(request.detail) if request.detail else ""
        short = compact(shortened(request.detail)) if len(detail) > MAX_DENIED_CHARS else detail
        told += (
            b""
            if request.decided is not None
            else _limits(request.plan, tuple([place[one.id] for one in request.plan.counters])),
            f"{request.decided or ''}\0{memory}\0{rows.beginning(request, time_us)}\0{request.context}\0{detail}\0"
            f"{'' if short == detail else short}\0",
        )
    return told


@lru_cache(maxsize=512)
def _limits(plan: Plan, places: tuple[int, ...]) -> bytes:
    """A plan's limits. Of each: n, window, counter in the script (0: none), rule, whether it only reports, words, a NUL."""
    return b"".join(
        [
            _LIMIT.pack(limit.n, limit.window_us, places[limit.counter] if limit.n else 0, limit.rule, limit.observe)
            + fragment(words).encode()
            + b"\0"
            for limit, words in zip(plan.limits, plan.reported, strict=True)
        ]
    )


def verdicts_of(requests: Sequence[DecisionRequest], told: Sequence[Any]) -> list[Verdict]:
    """The verdicts that `charge.lua` has returned on these charges, in order."""
    found: list[Verdict] = []
    here = 0
    for request in requests:
        stream_id, word, at, count, wait_us, full = told[here : here + _TOLD]
        here += _TOLD + 2 * full
        limits = request.plan.reported
        one = Verdict(request.decided or _DECIDED[word], row_id=None if stream_id is None else rows.row_id(stream_id))
        if at:
            one.reported = limits[at - 1]
            one.count = count
            one.remaining = None if count is None else max(0, request.plan.limits[at - 1].n - count)
        if full:
            exceeded = told[here - 2 * full : here]
            one.retry_after_us = wait_us
            one.exceeded = tuple([(limits[at - 1], wait) for at, wait in zip(exceeded[::2], exceeded[1::2], strict=True)])
        found.append(one)
    return found
