"""Builds the keys and arguments of `charge.lua` and the first argument of `append.lua`, and reads the reply of `charge.lua`."""

import struct
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final

from mcpguard.core.audit import MAX_DENIED_CHARS, fragment, shortened
from mcpguard.core.journal import BURST_BYTES, ROW_BYTES, Journal
from mcpguard.core.policy.model import Counter, Plan
from mcpguard.core.text import compact
from mcpguard.core.verdict import Decided, DecisionRequest, Verdict
from mcpguard.stores.redis import rows, states

_RESULTS: Final = 6
"""How many values the script returns for each request, not counting the limits that had no room."""

_WHOLE_ALLOWANCE: Final = compact((ROW_BYTES, BURST_BYTES, {}, {}))
"""`Journal.allowance` at the start of a session."""

_LIMIT: Final = struct.Struct("<qqIII")

_DECIDED: Final[dict[bytes, Decided]] = {
    b"allowed": "allowed",
    b"rate_limited": "rate_limited",
    b"denied": "denied",
    b"would_deny": "would_deny",
}


def counters_of(requests: Sequence[DecisionRequest]) -> tuple[Counter, ...]:
    """The counters of all requests that are to be decided, each once."""
    if len(requests) == 1:
        return () if requests[0].decided is not None else requests[0].plan.counters
    found = {counter.id: counter for request in requests if request.decided is None for counter in request.plan.counters}
    return tuple(found.values())


@lru_cache(maxsize=512)
def keys_and_labels(prefix: str, counters: tuple[Counter, ...]) -> tuple[tuple[str, ...], str]:
    """The keys of `charge.lua` in a namespace, and its first argument, the counters' labels."""
    keys = (*rows.audit_keys(prefix), prefix + "counters", *[states.counter_key(prefix, counter.id) for counter in counters])
    return keys, "".join([f"{counter.label}\0" for counter in counters])


pack_charge_head: Final = struct.Struct("<qqq").pack
"""Packs the second argument: the deadline in the server's time (us), the session's newest row number, and the bound of the
audit log in bytes."""

pack_append_head: Final = struct.Struct("<qq").pack
"""Packs the first argument of `append.lua`: the bound of the audit log in bytes, and the number of rows that are replaced."""


def arguments(
    requests: Sequence[DecisionRequest], counters: Sequence[Counter], journal: Journal, time_us: int
) -> list[bytes | str]:
    """The other arguments of `charge.lua`: the session's allowance, and two strings for each request."""
    index = {counter.id: at for at, counter in enumerate(counters, 1)}
    allowance = journal.allowance(time_us)
    args: list[bytes | str] = [_WHOLE_ALLOWANCE if allowance is None else compact(allowance)]
    for request in requests:
        remembered = journal.remembered(request, time_us)
        memory = "" if remembered is None else compact([list(map(int, remembered[0])), remembered[1]])
        detail = compact(request.detail) if request.detail else ""
        short = compact(shortened(request.detail)) if len(detail) > MAX_DENIED_CHARS else detail
        args += (
            b""
            if request.decided is not None
            else _limits(request.plan, tuple([index[one.id] for one in request.plan.counters])),
            f"{request.decided or ''}\0{memory}\0{rows.beginning(request, time_us)}\0{request.context}\0{detail}\0"
            f"{'' if short == detail else short}\0",
        )
    return args


@lru_cache(maxsize=512)
def _limits(plan: Plan, indexes: tuple[int, ...]) -> bytes:
    """A plan's limits: n, window, the counter's index in the script (0: none), rule, whether it is observed, fragment, NUL."""
    return b"".join(
        [
            _LIMIT.pack(limit.n, limit.window_us, indexes[limit.counter] if limit.n else 0, limit.rule, limit.observe)
            + fragment(reported).encode()
            + b"\0"
            for limit, reported in zip(plan.limits, plan.reported, strict=True)
        ]
    )


def verdicts_of(requests: Sequence[DecisionRequest], results: Sequence[Any]) -> list[Verdict]:
    """The verdicts in the reply of `charge.lua`, in the order of the requests."""
    found: list[Verdict] = []
    here = 0
    for request in requests:
        stream_id, word, at, count, wait_us, full = results[here : here + _RESULTS]
        here += _RESULTS + 2 * full
        limits = request.plan.reported
        one = Verdict(request.decided or _DECIDED[word], row_id=None if stream_id is None else rows.row_id(stream_id))
        if at:
            one.reported = limits[at - 1]
            one.count = count
            one.remaining = None if count is None else max(0, request.plan.limits[at - 1].n - count)
        if full:
            exceeded = results[here - 2 * full : here]
            one.retry_after_us = wait_us
            one.exceeded = tuple([(limits[at - 1], wait) for at, wait in zip(exceeded[::2], exceeded[1::2], strict=True)])
        found.append(one)
    return found
