"""Makes the command that runs `charge.lua`, and reads its reply."""

import struct
from collections.abc import Sequence
from functools import lru_cache

from mcpguard.light_typing import Any, Final, NamedTuple
from mcpguard.limiter.plan import Counter, Plan
from mcpguard.limiter.sliding import Exceeded, is_held
from mcpguard.session.audit import fragment
from mcpguard.session.journal import Journal
from mcpguard.session.verdict import Decided, DecisionRequest, Verdict
from mcpguard.stores.api import Clock
from mcpguard.stores.redis import layout
from mcpguard.stores.redis.layout import RedisKeys
from mcpguard.text.printing import compact

_MOST_USUAL: Final = 64
"""How many counters a usual call may have."""

_MOST_PLANS: Final = 512
"""How many plans have their beginning of a command kept, in about a kilobyte each."""

_LIMIT: Final = struct.Struct("<qqIIIIIqqI")


def counters_of(requests: Sequence[DecisionRequest]) -> tuple[Counter, ...]:
    """The counters of all requests, each once."""
    found = {counter.id: counter for request in requests for counter in request.plan.counters}
    return tuple(found.values())


class _Beginning(NamedTuple):
    """The beginning of a command that decides one request: what depends only on its plan.

    Attributes:
        plan: The plan.
        packed: The command up to the plan's limits.
        is_usual: Whether it may be a usual call: see `usual.lua`.
    """

    plan: Plan
    packed: bytes
    is_usual: bool


class Commands:
    """Makes the commands that run `charge.lua`, in the server's protocol.

    Args:
        sha: The script's hash.
        keys: The keys of the namespace.
        max_bytes: The bound of the audit log.
        clock: The store's time instead of the server's, for tests.
    """

    def __init__(self, sha: bytes, keys: RedisKeys, *, max_bytes: int, clock: Clock | None = None) -> None:
        self._sha = sha
        self._keys = keys
        self._max_bytes = max_bytes
        self._clock = clock
        self._beginnings: dict[int, _Beginning] = {}  # by the plan's identity: hashing a plan takes longer than all else

    def command(
        self,
        requests: Sequence[DecisionRequest],
        counters: Sequence[Counter],
        journal: Journal,
        *,
        time_us: int,
        deadline_us: int,
    ) -> bytes:
        """The command that decides requests.

        Args:
            requests: The requests.
            counters: Their counters; see `counters_of`.
            journal: The session's journal.
            time_us: Wall-clock time.
            deadline_us: The deadline, in the server's time.
        """
        is_usual = False
        if len(requests) == 1:
            (request,) = requests
            _, beginning, is_usual = self._beginnings.get(id(request.plan)) or self._begin_one(request.plan, counters)
            is_usual = (
                is_usual and not (request.detail or request.is_continued or request.is_behind) and request.waited_us is None
            )
        else:
            beginning = self._begin([one.plan for one in requests], counters)
        head = _HEAD.pack(deadline_us, journal.seq, self._max_bytes, is_usual)
        head += _USUAL_TEXTS if is_usual and not journal.denials else _texts(requests, counters, journal)
        parts = [beginning, _bulk(head), *[_bulk(layout.beginning(request, time_us)) for request in requests]]
        if self._clock is not None:
            parts.append(_bulk(b"%d" % self._clock()))
        return b"".join(parts)

    def _begin_one(self, plan: Plan, counters: Sequence[Counter]) -> _Beginning:
        if len(self._beginnings) >= _MOST_PLANS:
            self._beginnings.clear()
        is_usual = plan.is_plain and len(counters) <= _MOST_USUAL
        found = self._beginnings[id(plan)] = _Beginning(plan, self._begin([plan], counters), is_usual)
        return found

    def _begin(self, plans: Sequence[Plan], counters: Sequence[Counter]) -> bytes:
        """The command up to the limits of the last request, with these plans."""
        index = {counter.id: at for at, counter in enumerate(counters, 1)}
        keys = [
            *self._keys.audit,
            *map(self._keys.counter, counters),
            self._keys.labels,
        ]
        args = ["".join([f"{counter.label}\0" for counter in counters]).encode()]
        args += [_limits(plan, tuple([index[one.id] for one in plan.counters])) for plan in plans]
        parts = [b"EVALSHA", self._sha, b"%d" % len(keys), *[key.encode() for key in keys], *args]
        count = len(parts) + 1 + len(plans) + (self._clock is not None)
        return b"*%d\r\n%b" % (count, b"".join(map(_bulk, parts)))


def _bulk(part: bytes) -> bytes:
    """An argument in the server's protocol."""
    return b"$%d\r\n%b\r\n" % (len(part), part)


_HEAD: Final = struct.Struct("<qqqB")
_USUAL_TEXTS: Final = b"\0\0\0"


def _texts(requests: Sequence[DecisionRequest], counters: Sequence[Counter], journal: Journal) -> bytes:
    """The session's denials on each counter, and the texts of each request, with a NUL after each."""
    denials = journal.denials
    texts = [",".join([str(denials.get(counter.id, 0)) for counter in counters]) if denials else ""]
    for request in requests:
        admitted = "held" if request.is_behind else "continued" if request.is_continued else ""
        choices = admitted if request.waited_us is None else f"?{admitted}"
        texts += (choices, compact(request.detail) if request.detail else "")
    return ("\0".join(texts) + "\0").encode()


@lru_cache(maxsize=512)
def _limits(plan: Plan, indexes: tuple[int, ...]) -> bytes:
    """A plan's limits: see `LIMIT` in `charge.lua`."""
    packed: list[bytes] = []
    fragments = [fragment(reported).encode() for reported in plan.reported]
    last = _LIMIT.size * len(plan.limits)
    for limit, text in zip(plan.limits, fragments, strict=True):
        counter = indexes[limit.counter] if limit.n else 0
        mark = indexes[limit.mark] if limit.warn_at else 0
        rank = 2 * limit.observe + (limit.counts in {"errors", "concurrent"})
        first, last = last + 1, last + len(text)
        numbers = limit.n, limit.window_us, counter, limit.rule, rank, first, last
        packed.append(_LIMIT.pack(*numbers, limit.cost, limit.warn_at, mark))
    return b"".join(packed + fragments)


_USUAL: Final = struct.Struct("<qqIq")
"""The verdict on a usual call: see `usual.lua`."""


def verdicts_of(requests: Sequence[DecisionRequest], counters: Sequence[Counter], reply: Sequence[Any]) -> list[Verdict]:
    """The verdicts in the reply of `charge.lua`, in the order of the requests."""
    if type(reply[-1]) is bytes:
        ms, number, at, count = _USUAL.unpack(reply[-1])
        plan = requests[0].plan
        return [Verdict("allowed", plan, at - 1, count, plan.limits[at - 1].n - count, row_id=ms << 64 | number)]
    now_us, *values = reply
    found = []
    for request, result in zip(requests, values[len(counters) :], strict=True):
        stream_id, word, at, count, wait_us, exceeded, in_flight, warned = result
        plan = request.plan
        decision: Decided = word.decode()
        one = Verdict(decision, plan, row_id=None if stream_id is None else layout.row_id(stream_id))
        if at:
            one.limit = at - 1
            if count is not None:
                one.count = count
                one.remaining = max(0, plan.limits[at - 1].n - count)
        if exceeded:
            one.retry_after_us = wait_us
            one.exceeded = tuple([Exceeded(at - 1, wait) for at, wait in exceeded])
            if request.waited_us is not None and not one.forwards and is_held(plan.limits, one.exceeded, request.waited_us):
                one.decision = "held"
        if in_flight is not None:
            one.in_flight = in_flight
        if warned:
            one.warned = tuple([(at - 1, count) for at, count in warned])
        if one.decision == "held":
            known = {counter.id: value for counter, value in zip(counters, values, strict=False)}
            one.states = tuple(
                [layout.log(known[each.id]) if each.window_us else layout.calls(known[each.id]) for each in plan.counters]
            )
            one.now_us = now_us
        found.append(one)
    return found


def errors_of(plan: Plan) -> list[tuple[Counter, int]]:
    """The counters on which a failed call is counted, each with the smallest of its limits."""
    smallest: dict[int, int] = {}
    for limit in plan.limits:
        if limit.counts == "errors":
            smallest[limit.counter] = min(limit.n, smallest.get(limit.counter, limit.n))
    return [(plan.counters[counter], n) for counter, n in smallest.items()]
