"""The plan of a call: the limits that must have room, how reports name them, and their counters.

A counter is identified by its label, which says what it counts.
"""

import json
from collections.abc import Callable, Mapping

from mcpguard.light_typing import Any, Final, NamedTuple, Self
from mcpguard.limiter.sliding import Counts, Limit, grain
from mcpguard.text.digest import number

ARGUMENTS: Final = "arguments"
"""In `per`: calls of a tool with equal arguments have a counter of their own."""

SESSION: Final = "session"
"""In `per`: the calls of each session of the client have a counter of their own. As the window of a limit it means the same."""

_WARNED: Final = "warned"
"""In the label of a mark, see `Counter.mark`."""

_BY_ARGUMENTS: Final = f'"{ARGUMENTS}":"'
_SPLIT: Final = f'{_BY_ARGUMENTS}"'
"""What stands in the label of a counter for arguments that are not known yet. No name contains it: JSON escapes its quotes."""


class Counter(NamedTuple):
    """A counter of admitted calls, or of what else a limit counts.

    Attributes:
        id: 63 bits of a hash of `label`: the counter's key in every store.
        label: JSON: the namespace, the values of `per`, the rule's other selectors, what is counted unless that is calls, and
            the window in µs, which is 0 for calls in flight. `label_parts` reads it.
        window_us: The window's length; 0 for calls in flight.
    """

    id: int
    label: str
    window_us: int

    @property
    def is_split(self) -> bool:
        """Whether it stands for a counter for each value of the call's arguments, which are not known yet."""
        return _SPLIT in self.label

    @property
    def mark(self) -> "Counter":
        """The counter of the calls that have warned of this one."""
        before, _, window = self.label.rpartition(",")
        label = f'{before},"{_WARNED}",{window}'
        return Counter(counter_id(label), label, self.window_us)


class Reported(NamedTuple):
    """A limit in a denial and in the audit log.

    Attributes:
        axis: `user`, `tool` or `agent`.
        rule: The rule's text.
        limit: Calls per window, or units, errors, or calls in flight; None for `deny`.
        window: The window as the policy writes it; None for `deny` and for calls in flight.
        counts: `cost`, `errors` or `concurrent`; None if the limit counts calls.
    """

    axis: str
    rule: str
    limit: int | None
    window: str | None
    counts: Counts | None = None

    @property
    def limit_text(self) -> str:
        """The limit as reports write it: `5/1m`, `100-units/1h`, `3-errors/1m`, `2-in-flight`, or `deny`."""
        if self.limit is None:
            return "deny"
        if self.counts == "concurrent":
            return f"{self.limit}-in-flight"
        unit = {"cost": "-units", "errors": "-errors"}.get(str(self.counts), "")
        return f"{self.limit}{unit}/{self.window}"

    @classmethod
    def of(cls, members: Mapping[str, Any]) -> Self:
        """The limit with these `members`. Others are ignored."""
        return cls(*map(members.get, cls._fields))  # type: ignore[arg-type]

    def members(self) -> dict[str, object]:
        """The members as JSON, without those that do not apply."""
        return {key: value for key, value in self._asdict().items() if value is not None}


class Plan:
    """The limits that a call must pass, how each is reported, and the counters that the limits name by index.

    Equal calls have the same object, so a store can keep what it has made of a plan by the plan itself.

    Args:
        limits: The limits.
        reported: How each limit is reported.
        counters: The counters.

    Attributes:
        keys: The ids of the counters.
        is_plain: Whether all limits count calls and are enforced, each has a counter of its own, with the same index, no
            counter depends on the call's arguments, and no call waits.
        plain_limits: Of such a plan, each limit's counter id, n, window in µs and grain in µs; else empty.
        is_closed: Whether every call with this plan is denied.
        is_split: Whether a counter depends on the call's arguments: see `of_arguments`.
        settles: Whether the store has to be told when a call with this plan has ended.
        cost: What the call takes of limits that count cost; None if there are none.
        caps: Whether a limit counts calls in flight.
        warns: Whether a call warns at a share of a limit.
        waits: Whether a limit that is enforced lets calls wait.
    """

    def __init__(
        self, limits: tuple[Limit, ...] = (), reported: tuple[Reported, ...] = (), counters: tuple[Counter, ...] = ()
    ) -> None:
        self.limits = limits
        self.reported = reported
        self.counters = counters
        self.keys = tuple([counter.id for counter in counters])
        counted = {limit.counts for limit in limits}
        self.is_closed = any(not limit.n and not limit.observe for limit in limits)
        self.is_split = any(counter.is_split for counter in counters)
        self.caps = "concurrent" in counted
        self.warns = any(limit.warn_at for limit in limits)
        self.waits = any(limit.wait_us and not limit.observe for limit in limits)
        self.settles = self.caps or "errors" in counted
        self.cost = next((limit.cost for limit in limits if limit.counts == "cost"), None)
        self.is_plain = (
            counted == {"calls"}
            and len(limits) == len(counters)
            and all(limit.n and limit.counter == at and not limit.observe for at, limit in enumerate(limits))
            and not (self.is_split or self.waits)
        )
        self.plain_limits = [
            (key, one.n, one.window_us, grain(one.n, one.window_us))
            for key, one in zip(self.keys, limits if self.is_plain else (), strict=False)
        ]

    def counts_by(self, at: int, word: str) -> bool:
        """Whether the limit with this index counts calls by `ARGUMENTS`, or by `SESSION`."""
        limit = self.limits[at]
        return limit.n > 0 and f'"{word}":"' in self.counters[limit.counter].label  # JSON escapes the quotes in names

    def of_arguments(self, digest: str, earlier: str = "") -> "Plan":
        """The plan of a call with these arguments.

        Args:
            digest: The arguments' keyed hash, in hexadecimal digits: see `wire.arguments`.
            earlier: Their hash with a key that counted calls before; empty for none. The call must have room by either hash.
        """
        made = Plan(self.limits, self.reported, tuple([_of_arguments(counter, digest) for counter in self.counters]))
        if not earlier:
            return made
        more = self.only(lambda limit: limit.n > 0 and self.counters[limit.counter].is_split).of_arguments(earlier)
        first = len(made.counters)
        limits = [one._replace(counter=one.counter + first, mark=one.mark + first * (one.mark >= 0)) for one in more.limits]
        return Plan((*made.limits, *limits), made.reported + more.reported, made.counters + more.counters)

    def only(self, has: Callable[[Limit], bool]) -> "Plan":
        """The plan with only some of its limits, and their counters."""
        places = [at for at, limit in enumerate(self.limits) if has(limit)]
        kept = [self.limits[at] for at in places]
        index = {at: new for new, at in enumerate(sorted({at for limit in kept for at in (limit.counter, limit.mark)} - {-1}))}
        limits = [one._replace(counter=index.get(one.counter, -1), mark=index.get(one.mark, -1)) for one in kept]
        return Plan(tuple(limits), tuple([self.reported[at] for at in places]), tuple([self.counters[at] for at in index]))


def _of_arguments(counter: Counter, digest: str) -> Counter:
    if not counter.is_split:
        return counter
    label = counter.label.replace(_SPLIT, f'{_BY_ARGUMENTS}{digest}"', 1)
    return Counter(counter_id(label), label, counter.window_us)


class Label(NamedTuple):
    """The parts of a counter's label.

    Attributes:
        namespace: The namespace.
        values: The values of what the rule's `per` names; of `arguments` the hash.
        shared: The rule's other selectors.
        counts: What the counter counts.
        window_us: The window's length; 0 for calls in flight.
        is_mark: Whether it is the mark of the counter with the other parts, see `Counter.mark`.
    """

    namespace: str
    values: dict[str, str]
    shared: dict[str, list[str]]
    counts: Counts
    window_us: int
    is_mark: bool = False

    @property
    def text(self) -> str:
        """The label. `label_parts` parses it."""
        counts = () if self.counts == "calls" else (self.counts,)
        return json.dumps([self.namespace, self.values, self.shared, *counts, self.window_us], separators=(",", ":"))


def label_parts(label: str) -> Label:
    """The parts of a counter's label."""
    namespace, values, shared, *words, window_us = json.loads(label)
    counts: Any = next((word for word in words if word != _WARNED), "calls")
    return Label(namespace, values, shared, counts, window_us, _WARNED in words)


def counter_id(label: str) -> int:
    """The key of a counter in every store."""
    return number(label)
