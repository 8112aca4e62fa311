"""Makes the command that runs `charge.lua`, and reads the reply."""

import struct
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final

from mcpguard.limiter.plan import Counter, Plan
from mcpguard.limiter.sliding import Limit, State, grain
from mcpguard.session.audit import fragment
from mcpguard.session.verdict import DecisionRequest, Verdict
from mcpguard.stores.api import Clock
from mcpguard.stores.redis import layout
from mcpguard.text.printing import compact

_MOST_PLANS: Final = 512
"""How many plans have their beginning of a command kept, in about a kilobyte each."""

_LIMIT: Final = struct.Struct("<qqqIIIII")
_HEAD: Final = struct.Struct("<qqq")
_RESULTS: Final = 4
"""How many values the script returns for each request that it admits."""


def counters_of(requests: Sequence[DecisionRequest]) -> tuple[Counter, ...]:
    """The counters of all requests, each once."""
    if len(requests) == 1:
        return requests[0].plan.counters
    return tuple({counter.id: counter for request in requests for counter in request.plan.counters}.values())


class Commands:
    """Makes the commands that run `charge.lua`, in the server's protocol.

    Args:
        sha: The script's hash.
        prefix: The beginning of all keys of the namespace.
        max_bytes: The bound of the audit log.
        clock: The store's time instead of the server's, for tests.
    """

    def __init__(self, sha: bytes, prefix: str, *, max_bytes: int, clock: Clock | None = None) -> None:
        self._sha = sha
        self._prefix = prefix
        self._max_bytes = max_bytes
        self._clock = clock
        self._beginnings: dict[int, tuple[Plan, bytes]] = {}  # by the plan's identity: hashing it takes longer than all else

    def command(
        self,
        requests: Sequence[DecisionRequest],
        observed: tuple[Plan, bytes] | None,
        seq: int,
        time_us: int,
        deadline_us: int,
    ) -> bytes:
        """The command that admits requests.

        Args:
            requests: The requests.
            observed: If only observed rules refuse the first request: the limits that it is charged on, and the end of its row.
            seq: The number of the session's newest row.
            time_us: Wall-clock time.
            deadline_us: The deadline, in the server's time.
        """
        plans = [one.plan for one in requests]
        words = [_word(one) for one in requests]
        if observed:
            plans[0], words[0] = observed
        parts = [
            self._begin_one(plans[0]) if len(plans) == 1 and not observed else self._begin(plans, counters_of(requests)),
            _bulk(_HEAD.pack(deadline_us, seq, self._max_bytes)),
        ]
        for request, word in zip(requests, words, strict=True):
            detail = compact(request.detail).encode() if request.detail else b""
            parts += (_bulk(word), _bulk(detail), _bulk(layout.beginning(request, time_us)))
        if self._clock is not None:
            parts.append(_bulk(b"%d" % self._clock()))
        return b"".join(parts)

    def _begin_one(self, plan: Plan) -> bytes:
        """The beginning of a command that decides one request, which depends only on its plan."""
        known = self._beginnings.get(id(plan))
        if known is None:
            if len(self._beginnings) >= _MOST_PLANS:
                self._beginnings.clear()
            known = self._beginnings[id(plan)] = plan, self._begin([plan], plan.counters)
        return known[1]

    def _begin(self, plans: Sequence[Plan], counters: Sequence[Counter]) -> bytes:
        """The command up to the limits of the last request, with these plans."""
        index = {counter.id: at for at, counter in enumerate(counters, 1)}
        keys = [
            *layout.audit_keys(self._prefix),
            *[layout.counter_key(self._prefix, counter.id, window_us=counter.window_us) for counter in counters],
            self._prefix + "counters",
        ]
        args = ["".join([f"{counter.label}\0" for counter in counters]).encode()]
        args += [_limits(plan, tuple([index[one.id] for one in plan.counters])) for plan in plans]
        parts = [b"EVALSHA", self._sha, b"%d" % len(keys), *[key.encode() for key in keys], *args]
        count = len(parts) + 1 + 3 * len(plans) + (self._clock is not None)
        return b"*%d\r\n%b" % (count, b"".join(map(_bulk, parts)))


def _word(request: DecisionRequest) -> bytes:
    """The decision on a request that has room; nothing if it must wait."""
    return b"" if request.is_behind else b"continued" if request.rounds else b"allowed"


def _bulk(part: bytes) -> bytes:
    """An argument in the server's protocol."""
    return b"$%d\r\n%b\r\n" % (len(part), part)


@lru_cache(maxsize=512)
def _limits(plan: Plan, indexes: tuple[int, ...]) -> bytes:
    """A plan's limits: see `LIMIT` in `charge.lua`."""
    packed: list[bytes] = []
    fragments = [fragment(reported).encode() for reported in plan.reported]
    smallest: dict[int, Limit] = {}
    for limit in sorted(plan.limits, key=lambda one: -one.n):
        smallest[limit.counter] = limit
    last = _LIMIT.size * len(plan.limits)
    for limit, text in zip(plan.limits, fragments, strict=True):
        counter = indexes[limit.counter] if limit.n else 0
        window_us = limit.window_us if limit.n else 1  # a closed tool has no room in any window
        grain_us = grain(smallest[limit.counter].n, window_us)
        rank = 2 * limit.observe + (limit.counts in {"errors", "concurrent"})
        first, last = last + 1, last + len(text)
        packed.append(_LIMIT.pack(limit.n, window_us, grain_us, limit.cost, counter, rank, first, last))
    return b"".join(packed + fragments)


def admitted(requests: Sequence[DecisionRequest], counters: Sequence[Counter], reply: Sequence[Any]) -> list[Verdict]:
    """The verdicts on the requests that were admitted, by the reply of `charge.lua`."""
    found: list[Verdict] = []
    for request, here in zip(requests, range(1 + len(counters), len(reply), _RESULTS), strict=False):
        plan = request.plan
        stream_id, at, count, in_flight = reply[here : here + _RESULTS]
        one = Verdict("continued" if request.rounds else "allowed", plan, row_id=layout.row_id(stream_id))
        if at:
            one.limit, one.count, one.remaining = at - 1, count, plan.limits[at - 1].n - count
        if plan.caps:
            one.in_flight = in_flight
        found.append(one)
    return found


def states_in(reply: Sequence[Any], counters: Sequence[Counter]) -> dict[int, State]:
    """The states of counters by id, by the reply of `charge.lua` to a request that was not admitted."""
    return {one.id: layout.state(value, one.window_us) for one, value in zip(counters, reply[1:], strict=False)}


def errors_of(plan: Plan) -> list[tuple[Counter, int]]:
    """The counters on which a failed call is counted, each with the grain of the smallest of its limits."""
    smallest: dict[int, int] = {}
    for limit in plan.limits:
        if limit.counts == "errors":
            smallest[limit.counter] = min(limit.n, smallest.get(limit.counter, limit.n))
    counters = [(plan.counters[counter], n) for counter, n in smallest.items()]
    return [(counter, grain(n, counter.window_us)) for counter, n in counters]
