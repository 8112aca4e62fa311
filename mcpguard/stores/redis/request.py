"""Builds the command that runs `charge.lua` and the first argument of `append.lua`, and reads the reply of `charge.lua`."""

import struct
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final

from mcpguard.core.audit import MAX_DENIED_CHARS, fragment, shortened
from mcpguard.core.journal import BURST_BYTES, ROW_BYTES, Journal
from mcpguard.core.policy.plan import Counter, Plan
from mcpguard.core.text import compact
from mcpguard.core.verdict import Decided, DecisionRequest, Verdict
from mcpguard.stores.redis import rows, states

_RESULTS: Final = 6
"""How many values the script returns for each request, not counting the limits that had no room."""

_MOST_PLANS: Final = 512
"""How many plans have their beginning of a command kept, in about a kilobyte each."""

_LIMIT: Final = struct.Struct("<qqIII")
_MORE_OF_LIMIT: Final = struct.Struct("<qq")

_DECIDED: Final[dict[bytes, Decided]] = {
    b"allowed": "allowed",
    b"rate_limited": "rate_limited",
    b"denied": "denied",
    b"would_deny": "would_deny",
    b"continued": "continued",
    b"held": "held",
}


def counters_of(requests: Sequence[DecisionRequest]) -> tuple[Counter, ...]:
    """The counters of all requests that are to be decided, each once."""
    if len(requests) == 1:
        return () if requests[0].decided is not None else requests[0].plan.counters
    found = {counter.id: counter for request in requests if request.decided is None for counter in request.plan.counters}
    return tuple(found.values())


class Preparation:
    """The beginning of the commands that run `charge.lua`: what depends only on the plans, in the server's protocol.

    Args:
        sha: The script's hash.
        prefix: The beginning of all keys of the namespace.
        more: How many arguments the caller adds to those that are described here.
    """

    def __init__(self, sha: bytes, prefix: str, *, more: int = 0) -> None:
        self._sha = sha
        self._prefix = prefix
        self._more = more
        self._last: dict[int, tuple[Plan, bytes]] = {}  # by the plan's identity: hashing a plan takes longer than all else

    def beginning(self, requests: Sequence[DecisionRequest], counters: Sequence[Counter]) -> bytes:
        """The command up to the limits of the last request."""
        if len(requests) > 1 or not requests or requests[0].decided is not None:
            return self._begin([None if one.decided is not None else one.plan for one in requests], counters)
        plan = requests[0].plan
        found = self._last.get(id(plan))
        if found is None:
            if len(self._last) >= _MOST_PLANS:
                self._last.clear()
            found = self._last[id(plan)] = plan, self._begin([plan], counters)
        return found[1]

    def _begin(self, plans: Sequence[Plan | None], counters: Sequence[Counter]) -> bytes:
        index = {counter.id: at for at, counter in enumerate(counters, 1)}
        keys = [
            *rows.audit_keys(self._prefix),
            *[states.counter_key(self._prefix, counter.id, window_us=counter.window_us) for counter in counters],
            self._prefix + "counters",
        ]
        args = ["".join([f"{counter.label}\0" for counter in counters]).encode()]
        args += [b"" if plan is None else _limits(plan, tuple([index[one.id] for one in plan.counters])) for plan in plans]
        parts = [b"EVALSHA", self._sha, b"%d" % len(keys), *[key.encode() for key in keys], *args]
        return b"*%d\r\n%b" % (len(parts) + 2 + len(plans) + self._more, b"".join(map(bulk, parts)))


def bulk(part: bytes) -> bytes:
    """An argument in the server's protocol."""
    return b"$%d\r\n%b\r\n" % (len(part), part)


_WHOLE_ALLOWANCE: Final = bulk(compact((ROW_BYTES, BURST_BYTES, {}, {})).encode())
"""The argument of `Journal.allowance` at the start of a session."""

_BOUNDS: Final = struct.Struct("<qqq")


def bounds(deadline_us: int, seq: int, max_bytes: int) -> bytes:
    """The argument with the deadline in the server's time, the session's newest row number, and the bound of the audit log."""
    return b"$24\r\n%b\r\n" % _BOUNDS.pack(deadline_us, seq, max_bytes)


def rest(requests: Sequence[DecisionRequest], journal: Journal, time_us: int) -> bytes:
    """The arguments after `bounds`: the session's allowance, and a text for each request."""
    allowance = journal.allowance(time_us)
    args = [_WHOLE_ALLOWANCE if allowance is None else bulk(compact(allowance).encode())]
    for request in requests:
        remembered = journal.remembered(request, time_us)
        memory = "" if remembered is None else compact([list(map(int, remembered[0])), remembered[1]])
        detail = short = choices = ""
        if request.waited_us is not None or request.rounds:
            waited = "" if request.waited_us is None else request.waited_us
            choices = f"?{waited} {request.is_behind:d} {'continued' if request.rounds else 'allowed'}"
        if request.detail:
            detail = compact(request.detail)
            if len(detail) > MAX_DENIED_CHARS:
                short = compact(shortened(request.detail))
        args.append(
            bulk(
                f"{request.decided or choices}\0{memory}\0{rows.beginning(request, time_us)}\0{detail}\0"
                f"{'' if short == detail else short}\0".encode()
            )
        )
    return b"".join(args)


@lru_cache(maxsize=512)
def _limits(plan: Plan, indexes: tuple[int, ...]) -> bytes:
    """A plan's limits: see `LIMIT` in `charge.lua`. A NUL ends the fragment."""
    packed: list[bytes] = []
    for limit, reported in zip(plan.limits, plan.reported, strict=True):
        counter = indexes[limit.counter] if limit.n else 0
        rank = 2 * limit.observe + (limit.counts in {"errors", "concurrent"})
        has_more = limit.counts != "calls" or limit.wait_us > 0
        packed.append(_LIMIT.pack(limit.n, limit.window_us, counter, limit.rule, rank + 4 * has_more))
        packed.append(fragment(reported).encode() + b"\0")
        if has_more:
            packed.append(_MORE_OF_LIMIT.pack(limit.cost, limit.wait_us))
    return b"".join(packed)


pack_append_head: Final = struct.Struct("<qq").pack
"""Packs the first argument of `append.lua`: the bound of the audit log in bytes, and the number of rows that are replaced."""


def verdicts_of(requests: Sequence[DecisionRequest], counters: Sequence[Counter], reply: Sequence[Any]) -> list[Verdict]:
    """The verdicts in the reply of `charge.lua`, in the order of the requests."""
    found: list[Verdict] = []
    here = 1 + len(counters)
    for request in requests:
        stream_id, word, at, count, wait_us, full = reply[here : here + _RESULTS]
        here += _RESULTS + 2 * full
        one = Verdict(request.decided or _DECIDED[word], row_id=None if stream_id is None else rows.row_id(stream_id))
        if at:
            limit = request.plan.limits[at - 1]
            one.reported = request.plan.reported[at - 1]
            if count is not None:
                one.count = count
                one.remaining = max(0, limit.n - count)
            if limit.counts == "cost":
                one.cost = limit.cost
        if full:
            limits = request.plan.reported
            exceeded = reply[here - 2 * full : here]
            one.retry_after_us = wait_us
            one.exceeded = tuple([(limits[at - 1], wait) for at, wait in zip(exceeded[::2], exceeded[1::2], strict=True)])
        if request.plan.caps and request.decided is None:
            one.in_flight = reply[here]
            here += 1
        if one.decision == "held":
            values = {counter.id: value for counter, value in zip(counters, reply[1:], strict=False)}
            one.states = tuple([states.state(values[counter.id], counter.window_us) for counter in request.plan.counters])
            one.now_us = reply[0]
        found.append(one)
    return found


def taken_caps(plan: Plan, one: Verdict) -> list[Counter]:
    """The counters of calls in flight on which an admitted call has a place."""
    full = [reported for reported, _ in one.exceeded]
    without_room = {limit.rule for limit, reported in zip(plan.limits, plan.reported, strict=True) if reported in full}
    caps = [limit for limit in plan.limits if limit.counts == "concurrent" and limit.rule not in without_room]
    return [plan.counters[counter] for counter in {limit.counter: None for limit in caps}]


def errors_of(plan: Plan) -> list[tuple[Counter, int]]:
    """The counters on which a failed call is counted, each with the smallest of its limits."""
    smallest: dict[int, int] = {}
    for limit in plan.limits:
        if limit.counts == "errors":
            smallest[limit.counter] = min(limit.n, smallest.get(limit.counter, limit.n))
    return [(plan.counters[counter], n) for counter, n in smallest.items()]


pack_settle_head: Final = struct.Struct("<qq").pack
"""Packs the first argument of `settle.lua`: the deadline in the server's time, and the number of places."""
