"""Counts the calls of a rule in sliding windows, as its counters would, and remembers the busiest window."""

from typing import Final, NamedTuple

from mcpguard.limiter import sliding
from mcpguard.limiter.sliding import EMPTY, State
from mcpguard.policy.model import AXES, Call, Rate, Rule
from mcpguard.text.printing import plural
from mcpguard.text.times import window

LEAST_CALLS: Final = 20
"""Fewer calls say too little about a rule."""

BURST: Final = 4
"""A busiest window is a single burst if it has at least `LEAST_CALLS`, and more than this many times those of other times."""

_BURST_US: Final = 3_600_000_000
"""Windows that begin within this time, or within their length if that is longer, may be parts of one burst."""

_BURST_HISTORY: Final = 5
"""A history of less than this many such times has no single burst: there is nothing to compare it with."""

MAX_ENTRIES: Final = 4 * sliding.MAX_ENTRIES
"""The entries of a log beyond which it is merged into grains. Up to this many calls in a window, the count is exact."""

_MAX_LOGS: Final = 1024
"""When a window has more logs than this, and twice as many as are in use, the empty ones are removed."""


class Peak(NamedTuple):
    """The busiest window of a rule.

    Attributes:
        calls: The calls in it. Beyond `MAX_ENTRIES`, up to those of a 64th of a window are counted in addition.
        who: The values that the rule counts, such as the user; empty if it counts all calls together.
        begin_us: The wall-clock time of its first call.
    """

    calls: int = 0
    who: str = ""
    begin_us: int = 0


class _Windows:
    """The calls in the busiest windows of different times. Its memory does not grow.

    The windows fall into groups: those of a group begin within one `apart_us`. So only the two groups beside a window's own can
    have others that begin so near to it. With these three and one more, there is always one that does not.

    Args:
        apart_us: How far apart windows begin that are not parts of one burst.
    """

    def __init__(self, apart_us: int) -> None:
        self._apart_us = apart_us
        self._groups: list[tuple[int, int]] = []  # the busiest windows of the busiest groups: their calls, and their begin
        self._last = (0, 0)
        self._last_from_us = 0

    def add(self, calls: int, begin_us: int) -> None:
        """Note how many calls a window has. It begins no later than those before."""
        if not self._last[0] or begin_us <= self._last_from_us - self._apart_us:
            self._groups = self._busiest()
            self._last, self._last_from_us = (0, 0), begin_us
        self._last = max(self._last, (calls, begin_us))

    def other_than(self, begin_us: int) -> int:
        """The calls in the busiest window of another time than that of the busiest one, which begins at `begin_us`."""
        return max((calls for calls, at_us in self._busiest() if abs(at_us - begin_us) >= self._apart_us), default=0)

    def _busiest(self) -> list[tuple[int, int]]:
        return sorted([*self._groups, self._last], reverse=True)[:4]


class Tracked:
    """A rule, and the busiest window of each of its limits.

    Args:
        rule: The rule.
        rates: The windows.
    """

    def __init__(self, rule: Rule, rates: tuple[Rate, ...]) -> None:
        self.rule = rule
        self.calls = 0
        self.rates = rates
        self.peaks = [Peak() for _ in rates]
        self._windows = [_Windows(_apart_us(rate)) for rate in rates]
        self._logs: list[dict[tuple[str, ...], State]] = [{} for _ in rates]
        self._prune_at = [_MAX_LOGS for _ in rates]
        self._axes = [axis for axis in AXES if axis in rule.per]
        implied = {"server"} if "tool" in rule.per and "server" not in rule.selectors else set()
        self._shown = [axis for axis in self._axes if axis not in rule.exact and axis not in implied]

    def add(self, call: Call, time_us: int) -> None:
        """Count a call. It is earlier than the calls before: the logs run backwards, on the negative time."""
        self.calls += 1
        key = tuple([getattr(call, axis) for axis in self._axes])
        for at, rate in enumerate(self.rates):
            logs = self._logs[at]
            old = logs.get(key, EMPTY)
            now_us = max(-time_us, old[-2]) if old else -time_us
            log = _added(sliding.live(old, rate.window_us, now_us), rate.window_us, now_us)
            logs[key] = log
            calls = sliding.used(log)
            self._windows[at].add(calls, -now_us)
            if calls > self.peaks[at].calls:
                who = [value for axis, value in zip(self._axes, key, strict=True) if axis in self._shown]
                self.peaks[at] = Peak(calls, " ".join(who), -now_us)
            if len(logs) > self._prune_at[at]:
                live = {one: kept for one, kept in logs.items() if kept[-2] > now_us - rate.window_us}
                self._logs[at] = live
                self._prune_at[at] = max(_MAX_LOGS, 2 * len(live))

    def burst(self, at: int, history_us: int) -> str:
        """Say that the busiest window of a limit is a single burst, which may be a loop; empty if it is none."""
        peak, rate = self.peaks[at], self.rates[at]
        others = self._windows[at].other_than(peak.begin_us)
        if peak.calls < LEAST_CALLS or peak.calls <= BURST * others or history_us < _BURST_HISTORY * _apart_us(rate):
            return ""
        return f"a single burst, at other times no {window(rate.window_us)} has more than {plural(others, 'call')}"


def _apart_us(rate: Rate) -> int:
    return max(rate.window_us, _BURST_US)


def _added(log: State, window_us: int, now_us: int) -> State:
    """A live log with a call. It keeps the time of each call as long as it can."""
    log = (now_us, *log[1:], now_us, 1)
    return _in_grains(log, -(-window_us // sliding.EXACT)) if len(log) > 2 * MAX_ENTRIES else log


def _in_grains(log: State, grain_us: int) -> State:
    """A log with one entry for each grain. Grains have fixed times, so that merging a log again moves nothing."""
    entries: list[int] = []
    for at in range(1, len(log), 2):
        if entries and entries[-2] // grain_us == log[at] // grain_us:
            entries[-2] = log[at]
            entries[-1] += log[at + 1]
        else:
            entries += (log[at], log[at + 1])
    return (log[0], *entries)
