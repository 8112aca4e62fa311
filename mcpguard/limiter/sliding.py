"""The limiter: a coalesced log of a sliding window, as pure functions on integer microseconds.

A counter's state is the log of its admissions: their times and costs. An entry counts while it is younger than the window. So
no window of that length, wherever it starts, holds more than the limit. For limits up to `EXACT`, each admission has its own
entry. For larger limits, admissions within a 64th of the window share an entry, and count as if all had the time of the last.
This bounds the log: the limit is never exceeded, and a call is admitted at most a 64th of the window late.

A limit counts calls, or their cost in units. A limit on errors has room while the log of failed calls has room for one more: it
is charged by `fail`, after the call. A cap on calls in flight has no window: its counter's state has the ids of the calls.

A refused call may be held until its limits have room: `is_held` says whether, and `wait_in_queue_us` for how long.
"""

from collections.abc import Container, Sequence
from functools import lru_cache

from mcpguard.light_typing import Final, Literal, NamedTuple

State = tuple[int, ...]
"""A counter's log: `(open_first_us, time_us, cost, time_us, cost, …)`, oldest first.

`open_first_us` is the time of the first admission in the newest entry. The log of an unused counter is empty. The state of a
counter of calls in flight is not a log: it has the ids of the calls, in the order of their admission.
"""

Counts = Literal["calls", "cost", "errors", "concurrent"]
"""What a limit counts: calls, their cost, calls that failed, or calls in flight."""

EMPTY: Final[State] = ()

EXACT: Final = 64
"""Limits up to this many per window are exact. For larger ones an entry covers a grain: a 64th of the window.

If a limit is lowered to `EXACT` or less, entries that cover a grain stay: only the time of their last admission is known, and
an earlier time could admit too many calls.
"""

MAX_ENTRIES: Final = EXACT + 2
"""The most entries in a log: 65 grains can begin within a window, and one can begin before it and end within it."""


class Limit(NamedTuple):
    """At most `n` calls in any window, by one rule; or another of `Counts`.

    Attributes:
        n: 1 or more; or 0 for a rule that denies, which has no counter.
        window_us: The window's length; 0 for calls in flight. A counter belongs to one window.
        counter: The index of its counter among those of the call; -1 if it has none.
        rule: The index of its rule in the policy. An observed rule has room if each of its limits has.
        observe: Whether its rule only reports.
        counts: What it counts. Limits with the same counter count the same.
        cost: What the call takes of the limit; 1 unless it counts cost.
        wait_us: How long a call that it refuses may be held; 0 for not at all.
        warn_at: The sum at which an admitted call warns; 0 for never.
        mark: The index of the counter of the calls that have warned; -1 if it has none. It holds one in a window.
    """

    n: int
    window_us: int
    counter: int
    rule: int = 0
    observe: bool = False
    counts: Counts = "calls"
    cost: int = 1
    wait_us: int = 0
    warn_at: int = 0
    mark: int = -1


class Exceeded(NamedTuple):
    """A limit without room.

    Attributes:
        limit: Its index among the limits of the call.
        retry_after_us: The shortest wait after which it has room, if no other call comes; None if waiting does not help.
    """

    limit: int
    retry_after_us: int | None


class Decision(NamedTuple):
    """The decision on one call.

    Attributes:
        admitted: Whether every enforced limit had room.
        used: The sum in each counter before the call.
        states: The counters' states after the call; the same objects as before where nothing was charged.
        exceeded: The enforced limits without room if the call is not admitted, else the observed ones.
        charged: The limits that were charged: for each counter the smallest limit, of rules that have room; and marks, as
            limits of one call in a window.
        warned: The limits of which the call warns: the index of each, and the sum in its counter after the call.
    """

    admitted: bool
    used: tuple[int, ...]
    states: tuple[State, ...]
    exceeded: tuple[Exceeded, ...]
    charged: tuple[Limit, ...] = ()
    warned: tuple[tuple[int, int], ...] = ()


def live(state: State, window_us: int, now_us: int) -> State:
    """The log without the entries that have left the window at `now_us`."""
    if len(state) < 3 or state[1] > now_us - window_us:
        return state
    horizon = now_us - window_us
    first = 3
    while first < len(state) and state[first] <= horizon:
        first += 2
    return state[:1] + state[first:] if first < len(state) else EMPTY


def used(log: State) -> int:
    """The sum of the costs in a live log."""
    return sum(log[2::2])


def retry_after(log: State, n: int, window_us: int, now_us: int, cost: int = 1) -> int | None:
    """The shortest wait in microseconds after which a live log has room for `cost`.

    Returns:
        0 if it has room now, None if it never will. If nothing else is admitted, waiting that long is enough, and a microsecond
        less is not.
    """
    if cost > n:
        return None
    over = used(log) + cost - n
    wait = 0
    for at in range(1, len(log), 2):
        if over <= 0:
            break
        over -= log[at + 1]
        wait = log[at] + window_us - now_us
    return wait


def grain(n: int, window_us: int) -> int:
    """How long after the first admission in an entry others may share the entry."""
    return 0 if n <= EXACT else -(-window_us // EXACT)


def charge(log: State, n: int, window_us: int, now_us: int, cost: int = 1) -> State:
    """Add `cost` to a live log, admitted at `now_us`, which must not precede its newest entry."""
    if not log:
        return (now_us, now_us, cost)
    grain_us = grain(n, window_us)
    if now_us - log[0] < grain_us:
        return (*log[:-2], now_us, log[-1] + cost)
    if len(log) > 2 * MAX_ENTRIES - 1:
        log = _coalesce(log, grain_us)
        if len(log) > 2 * MAX_ENTRIES - 1:  # more errors than a limit up to `EXACT`: it depends on the newest ones alone
            log = (log[0], log[3], log[2] + log[4], *log[5:])
    return (now_us, *log[1:], now_us, cost)


def _coalesce(log: State, grain: int) -> State:
    """Merge the entries of a log into grains. Admissions only move to later times, so the limit is never exceeded."""
    entries: list[int] = []
    opened = -1
    for at in range(1, len(log), 2):
        if entries and log[at] - opened < grain:
            entries[-2] = log[at]
            entries[-1] += log[at + 1]
        else:
            opened = log[at]
            entries += (log[at], log[at + 1])
    return (opened, *entries)


def shift(log: State, by_us: int) -> State:
    """Convert a log to a clock that is ahead by `by_us`."""
    return tuple([value + by_us if at == 0 or at % 2 else value for at, value in enumerate(log)])


def merge(log: State, other: State, window_us: int) -> State:
    """Merge two live logs of one counter. If the result would be too long, its entries are merged into grains."""
    pairs = sorted([*zip(log[1::2], log[2::2], strict=True), *zip(other[1::2], other[2::2], strict=True)])
    merged = (pairs[-1][0], *[value for pair in pairs for value in pair]) if pairs else EMPTY
    return merged if len(pairs) <= EXACT else _coalesce(merged, -(-window_us // EXACT))


def decide(limits: Sequence[Limit], states: Sequence[State], now_us: int, call_id: int = 0) -> Decision:
    """Decide one call against all its limits: every counter is charged, or none.

    Args:
        limits: The limits that apply to the call. Limits with the same counter have the same window.
        states: The state of each counter that `limits` name.
        now_us: The store's time. If a log has a later entry, the time of that entry is used, so that time never runs backwards.
        call_id: The id by which counters of calls in flight know the call; no other call in flight may have it.

    Returns:
        The decision. An observed rule is charged if the call is admitted and each of its limits has room. Limits on errors are
        not charged: see `fail`.
    """
    smallest, caps, charged = _tightest(tuple(limits))
    for counter, state in enumerate(states):
        if state and counter not in caps and state[-2] > now_us:
            now_us = state[-2]
    logs = list(states)
    totals = [0] * len(logs)
    for _, window_us, counter, _, _, _, _, _, _, _ in smallest:
        if window_us:
            logs[counter] = live(logs[counter], window_us, now_us)
            totals[counter] = used(logs[counter])
        else:
            totals[counter] = len(logs[counter])
    full = [at for at, (n, _, counter, _, _, _, cost, _, _, _) in enumerate(limits) if not n or totals[counter] + cost > n]
    enforced = [at for at in full if not limits[at].observe]
    exceeded = tuple([Exceeded(at, _wait(limits[at], logs, now_us)) for at in enforced or full])
    if enforced:
        return Decision(False, tuple(totals), tuple(states), exceeded)
    without_room = {limits[at].rule for at in full}
    warned = _warned(limits, totals, logs, without_room, now_us)
    if full:
        charged = _tightest(tuple([limit for limit in limits if limit.rule not in without_room]))[2]
    if warned:
        charged += tuple([Limit(1, limits[at].window_us, limits[at].mark) for at, _ in warned])
    after = list(states)
    for n, window_us, counter, _, _, _, cost, _, _, _ in charged:
        log = logs[counter]
        after[counter] = charge(log, n, window_us, now_us, cost) if window_us else (*log, call_id)
    return Decision(True, tuple(totals), tuple(after), exceeded, charged, warned)


def _warned(
    limits: Sequence[Limit], totals: Sequence[int], logs: list[State], without_room: Container[int], now_us: int
) -> tuple[tuple[int, int], ...]:
    """The limits of which an admitted call warns: it is at or past the share, and no call of the last window has warned.

    Args:
        limits: The limits of the call.
        totals: The sum in each counter before the call.
        logs: The logs of the counters. Those of marks become live.
        without_room: The observed rules without room, which do not count the call.
        now_us: The store's time.
    """
    found: dict[int, tuple[int, int]] = {}  # by the mark
    for at, limit in enumerate(limits):
        if limit.warn_at and limit.rule not in without_room:
            total = totals[limit.counter] + (0 if limit.counts == "errors" else limit.cost)
            logs[limit.mark] = live(logs[limit.mark], limit.window_us, now_us)
            if total >= limit.warn_at and not logs[limit.mark]:
                found.setdefault(limit.mark, (at, total))
    return tuple(found.values())


def fail(limits: Sequence[Limit], states: Sequence[State], now_us: int) -> tuple[tuple[State, ...], tuple[Limit, ...]]:
    """Count a call that failed on each counter of errors.

    Args:
        limits: The limits that applied to the call.
        states: The state of each counter that `limits` name.
        now_us: The store's time; see `decide`.

    Returns:
        The counters' states after that, and the limits that were charged.
    """
    after = list(states)
    charged = tuple([limit for limit in _tightest(tuple(limits))[0] if limit.counts == "errors"])
    for n, window_us, counter, *_ in charged:
        log = after[counter]
        at_us = max(now_us, log[-2]) if log else now_us
        after[counter] = charge(live(log, window_us, at_us), n, window_us, at_us)
    return tuple(after), charged


@lru_cache(maxsize=512)
def _tightest(limits: tuple[Limit, ...]) -> tuple[tuple[Limit, ...], frozenset[int], tuple[Limit, ...]]:
    """The smallest limit of each counter; the counters of calls in flight; and those limits that an admission is charged on."""
    smallest: dict[int, Limit] = {}
    for limit in limits:
        other = smallest.get(limit.counter)
        if limit.n and (other is None or limit.n < other.n):
            smallest[limit.counter] = limit
    found = tuple(smallest.values())
    caps = frozenset(limit.counter for limit in found if not limit.window_us)
    return found, caps, tuple([limit for limit in found if limit.counts != "errors"])


def _wait(limit: Limit, logs: Sequence[State], now_us: int) -> int | None:
    """The wait after which a limit has room; None if waiting does not help, or if nobody knows how long it takes."""
    if not limit.window_us:
        return None
    return retry_after(logs[limit.counter], limit.n, limit.window_us, now_us, limit.cost)


def is_held(limits: Sequence[Limit], exceeded: Sequence[Exceeded], waited_us: int) -> bool:
    """Whether a refused call is held.

    Each limit that refuses it must have a `wait` that has not passed, and must have room before that. Of a cap only the wait
    counts: nobody knows when a call in flight will end.

    Args:
        limits: The call's limits.
        exceeded: The limits that refuse it.
        waited_us: How long it has been held.
    """
    for at, retry_us in exceeded:
        limit = limits[at]
        left_us = limit.wait_us - waited_us
        if left_us <= 0 or (retry_us is None and limit.counts != "concurrent") or (retry_us or 0) > left_us:
            return False
    return True


def wait_in_queue_us(limit: Limit, log: State, now_us: int, ahead: Sequence[int]) -> int | None:
    """After how long a limit has room for a call, if the calls that wait before it are admitted as soon as there is room.

    Args:
        limit: A limit of the call that has a window.
        log: Its counter's log.
        now_us: The store's time.
        ahead: What each of the calls before it takes of the limit, in their order.

    Returns:
        The wait in microseconds; None if the call costs more than the whole limit.
    """
    n, window_us = limit.n, limit.window_us
    at_us = max(now_us, log[-2]) if log else now_us
    for cost in filter(None, ahead):  # entries without cost would push others together in a full log
        log = live(log, window_us, at_us)
        wait_us = retry_after(log, n, window_us, at_us, cost)
        if wait_us is not None:
            at_us += wait_us
            log = charge(live(log, window_us, at_us), n, window_us, at_us, cost)
    wait_us = retry_after(live(log, window_us, at_us), n, window_us, at_us, limit.cost)
    return None if wait_us is None else at_us - now_us + wait_us
