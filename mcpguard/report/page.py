"""Makes the page of a report: one HTML file that asks no other place for anything.

Charts are drawn as SVG. Their colours are CSS variables of the page, so that they follow its theme.
"""

import math
import shlex
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.resources import files

from mcpguard import __version__
from mcpguard.light_typing import Final, NamedTuple
from mcpguard.limiter.plan import Reported
from mcpguard.policy.model import Policy, Rate, Rule
from mcpguard.policy.suggest import with_headroom
from mcpguard.reading.statistics import Figures
from mcpguard.report.gather import AXES, Name, Named, PeriodFindings, Use
from mcpguard.text.printing import printable
from mcpguard.text.times import rfc3339, span_in_words, window

TOP: Final = 10
"""How many names a table has."""

_LIMITS: Final = 20
"""How many limits a table has."""

_DAY_US: Final = 86_400_000_000
_LABELS: Final = 8
"""The most points of a chart that have a label: there is room for no more."""

_ERROR_COLOURS: Final = {"tool_error": "orange", "rpc_error": "violet"}

_AXIS_COLOURS: Final = {"user": "blue", "agent": "orange", "tool": "violet", "none": "grey"}


class Series(NamedTuple):
    """One series of a chart.

    Attributes:
        name: Its name in the legend.
        colour: The name of a CSS variable.
        values: A value for each point; None for no value.
    """

    name: str
    colour: str
    values: Sequence[float | None]


def page(findings: PeriodFindings, policy: Policy | None, *, namespace: str, filters: str, made_us: int) -> str:
    """The HTML of a report.

    Args:
        findings: The figures.
        policy: The policy in force; None if it is not valid.
        namespace: The namespace of the rows.
        filters: The filters of the rows, as options; empty if there are none.
        made_us: The time of the report.
    """
    from jinja2 import Environment

    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    shown = {"number": _number, "share": _share, "ms": _ms, "name": _name, "time": _time, "seconds": _seconds, "span": _span}
    environment.filters |= shown
    template = environment.from_string((files("mcpguard.report") / "page.html").read_text("utf-8"))
    starts = range(findings.first_us, findings.until_us, findings.slot_us)
    return template.render(
        version=__version__,
        namespace=namespace,
        filters=filters,
        findings=findings,
        total=findings.all,
        made_us=made_us,
        axes=AXES,
        charts=_charts(findings),
        slots=[(start, slot) for start, slot in zip(starts, findings.slots, strict=True) if slot.figures.calls],
        users=_top(findings.users),
        agents=_top(findings.agents),
        tools=_top(findings.tools),
        limits=_fired(findings),
        unreached=unreached(policy, findings.limits) if policy and not filters else [],
        shown=_LIMITS,
        policy=policy,
    )


def _charts(findings: PeriodFindings) -> Iterator[tuple[str, str, Sequence[Series], str]]:
    """The charts: title, what it shows, as a sentence, its series, and the drawing."""
    slots, labels, each = findings.slots, _labels(findings), _span(findings.slot_us)
    allowed = [slot.figures.allowed or None for slot in slots]
    would_deny = [slot.figures.would_deny or None for slot in slots]
    denied = [slot.figures.denied or None for slot in slots]
    calls = [
        Series("allowed", "green", allowed),
        Series("would be denied", "amber", would_deny),
        Series("denied", "red", denied),
    ]
    errors = [
        Series(word, colour, [slot.figures.outcomes[word] or None for slot in slots]) for word, colour in _ERROR_COLOURS.items()
    ]
    by_axis, would_by_axis = (_by_axis([getattr(slot, key) for slot in slots]) for key in ("denied", "would_deny"))
    for title, what, series in (
        ("Calls", f"Calls per {each}.", calls),
        ("Denials by axis", f"Calls that were not forwarded, per {each}, by the axis of the limit.", by_axis),
        (
            "Would-be denials by axis",
            f"Calls that observed limits would have denied, per {each}, by the axis of the limit.",
            would_by_axis,
        ),
        ("Errors", f"Calls that failed, per {each}, by their outcome.", errors),
    ):
        if shown := [one for one in series if any(one.values)]:
            yield title, what, shown, stacked(labels, shown)
    percentiles = zip(*(slot.figures.percentiles_ms() for slot in slots), strict=True)
    names = (("p50", "blue"), ("p95", "orange"), ("p99", "violet"))
    durations = [Series(*name, values) for name, values in zip(names, percentiles, strict=True)][::-1]
    if any(durations[0].values):
        what = f"Milliseconds from the call to its answer, per {each}. The scale is logarithmic."
        yield "Durations", what, durations, lines(labels, durations)


def _by_axis(counts: Sequence[Counter[str]]) -> list[Series]:
    return [
        Series("no limit" if axis == "none" else axis, _AXIS_COLOURS[axis], [one[axis] or None for one in counts])
        for axis in AXES
    ]


def _labels(findings: PeriodFindings) -> list[str]:
    """The label of each slot: the time or the date. At most `_LABELS` slots have one."""
    starts = [_time(findings.first_us + at * findings.slot_us) for at in range(len(findings.slots))]
    period_us = len(starts) * findings.slot_us
    points = [at for at, start in enumerate(starts) if period_us <= 2 * _DAY_US or start.endswith("00:00")]
    part = slice(11, 16) if period_us <= 2 * _DAY_US else slice(5, 10) if period_us < 300 * _DAY_US else slice(0, 10)
    shown = points[:: -(-len(points) // _LABELS)]
    return [start[part] if at in shown else "" for at, start in enumerate(starts)]


def _top(named: Named) -> list[tuple[Name, Figures, float]]:
    """The names with the most calls, their figures, and their length as a bar in percent."""
    top = named.top(TOP)
    return [(name, figures, 100 * figures.calls / top[0][1].calls) for name, figures in top]


def _fired(findings: PeriodFindings) -> list[tuple[Reported, int, int]]:
    """The limits that denied most, with denials and would-be denials."""
    fired = [(limit, use.denied, use.would_deny) for limit, use in findings.limits.items()]
    fired = [one for one in fired if one[1] + one[2]]
    return sorted(fired, key=lambda one: -one[1] - one[2])[:_LIMITS]


class Unreached(NamedTuple):
    """A limit of the policy that had room for every call of the period, as far as rows tell.

    Attributes:
        rule: Its rule.
        rate: The limit. Of a cap on calls in flight, the window is 0.
        limit: How reports name it.
        peak: The most that one counter held, as far as rows tell; 0 if no row names the limit.
        suggested: A lower limit that leaves room above `peak`; None if there is none.
        command: The command line that sets the suggested limit; empty without a suggestion.
    """

    rule: Rule
    rate: Rate
    limit: Reported
    peak: int
    suggested: int | None
    command: str


def unreached(policy: Policy, uses: Mapping[Reported, Use]) -> list[Unreached]:
    """The limits that were never reached, in the order of the policy.

    Args:
        policy: The policy in force.
        uses: The use of limits in the period.
    """
    found = []
    for rule, at in policy.parts:
        for rate, limit in zip(rule.bounds, rule.reported, strict=False):  # `deny` has no rate
            use = uses.get(limit, Use())
            if not (use.denied or use.would_deny or use.was_full):
                lower = with_headroom(use.peak) if use.peak and rule.counts == "calls" else rate.n
                suggestion = (
                    (lower, _command(policy.rules[at]._replace(concurrent=None), rate, lower)) if lower < rate.n else (None, "")
                )
                found.append(Unreached(rule, rate, limit, use.peak, *suggestion))
    return found


def _command(rule: Rule, changed: Rate, n: int) -> str:
    """The command line that gives a rule another limit in place of one."""
    rates = tuple(rate._replace(n=n) if rate == changed else rate for rate in rule.rates)
    return shlex.join(["mcpguard", "policy", "set", *rule._replace(rates=rates).setting])


def _time(time_us: int) -> str:
    """A time in UTC, to the minute."""
    return _seconds(time_us)[:-3]


def _seconds(time_us: int) -> str:
    """A time in UTC, to the second."""
    return rfc3339(time_us)[:19].replace("T", " ")  # `datetime.fromtimestamp` ends with the year 3000 on Windows


def _span(span_us: int) -> str:
    """A span of time in words.

    >>> _span(3_600_000_000), _span(15 * 60_000_000), _span(90_000_000), _span(400_000)
    ('hour', '15 minutes', '90 seconds', 'under a second')
    >>> _span(2 * 86_400_000_000), _span(125_000_000), _span(9_001_000_000)
    ('2 days', '2.1 minutes', '2.5 hours')
    """
    seconds = span_us // 1_000_000
    if not seconds:
        return "under a second"
    if seconds < 120 or seconds % 60 == 0:
        return (span_in_words if seconds % 60 else window)(seconds * 1_000_000)
    return f"{seconds / 60:.1f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"


def _number(n: int | None) -> str:
    return "–" if n is None else f"{n:,}".replace(",", "\u202f")


def _share(share: float | None) -> str:
    """A share in percent. Only none is 0 %, and only all is 100 %.

    >>> _share(0.0123), _share(0.0), _share(0.00001), _share(0.99999), _share(1.0), _share(None)
    ('1.2 %', '0 %', '<0.1 %', '>99.9 %', '100 %', '–')
    """
    if share is None:
        return "–"
    if 0 < share < 0.001:
        return "<0.1 %"
    if 0.999 < share < 1:
        return ">99.9 %"
    return f"{100 * share:.1f} %".replace(".0 %", " %")


def _ms(duration_ms: float | None) -> str:
    """A duration with three digits, or in whole seconds.

    >>> _ms(1.234), _ms(2_500.0), _ms(0.08), _ms(1_800_000.0)
    ('1.23 ms', '2.5 s', '0.08 ms', '1\u202f800 s')
    """
    if duration_ms is None:
        return "–"
    if duration_ms >= 1e5:
        return f"{_number(round(duration_ms / 1e3))} s"
    return f"{duration_ms / 1e3:.3g} s" if duration_ms >= 1e3 else f"{duration_ms:.3g} ms"


def _name(text: object) -> str:
    """A name as it is shown: without characters that would change the text around it."""
    return printable(str(text)) if text else "–"


_WIDTH: Final = 900
_HEIGHT: Final = 300
_LEFT: Final = 52
_TOP: Final = 12
_BOTTOM: Final = 274
"""Where the drawing area begins and ends. Around it are the labels."""


def stacked(labels: Sequence[str], series: Sequence[Series]) -> str:
    """Bars on top of each other.

    Args:
        labels: The label of each point; empty for a point whose label is not shown.
        series: The series, the lowest first.
    """
    ends = [0.0] * len(labels)
    highest = max(
        (sum(value or 0 for value in values) for values in zip(*[one.values for one in series], strict=True)), default=0
    )
    ticks = _ticks(highest)
    width = (_WIDTH - _LEFT) / len(labels)
    bars = []
    for one in series:
        for at, value in enumerate(one.values):
            if value:
                y = _y(ends[at] + value, 0, ticks[-1])
                height = _y(ends[at], 0, ticks[-1]) - y
                shape = f'x="{_x(at, labels) - 0.4 * width:.2f}" y="{y:.2f}" width="{0.8 * width:.2f}" height="{height:.2f}"'
                bars.append(f'<rect {shape} style="fill:var(--{one.colour})"/>')
                ends[at] += value
    return _drawn(labels, ticks, lambda tick: _y(tick, 0, ticks[-1]), bars)


def lines(labels: Sequence[str], series: Sequence[Series]) -> str:
    """Lines on a logarithmic scale; see `stacked`. All values are greater than 0."""
    logs = [math.log10(value) for one in series for value in one.values if value is not None]
    low, high = math.floor(min(logs)), max(math.ceil(max(logs)), math.floor(min(logs)) + 1)
    curves = []
    for one in series:
        path, pen = "", "M"
        for at, value in enumerate(one.values):
            if value is None:
                pen = "M"
            else:  # a line of no length, so that a point without neighbours is seen
                path += f"{pen}{_x(at, labels):.2f} {_y(math.log10(value), low, high):.2f}h0"
                pen = "L"
        curves.append(f'<path d="{path}" style="fill:none;stroke:var(--{one.colour});stroke-width:2;stroke-linecap:round"/>')
    ticks = [10.0**power for power in range(low, high + 1)]
    return _drawn(labels, ticks, lambda tick: _y(math.log10(tick), low, high), curves)


def _x(at: int, labels: Sequence[str]) -> float:
    return _LEFT + (_WIDTH - _LEFT) * (at + 0.5) / len(labels)


def _y(value: float, low: float, high: float) -> float:
    return _BOTTOM - (_BOTTOM - _TOP) * (value - low) / (high - low)


def _drawn(labels: Sequence[str], ticks: Sequence[float], y: Callable[[float], float], shapes: Sequence[str]) -> str:
    """The chart as text."""
    guides = [f'<path d="M{_LEFT} {y(tick):.2f}H{_WIDTH}" style="stroke:var(--line)"/>' for tick in ticks]
    texts = [f'<text x="{_LEFT - 8}" y="{y(tick) + 4:.2f}" text-anchor="end">{_short(tick)}</text>' for tick in ticks]
    texts += [
        f'<text x="{_x(at, labels):.2f}" y="{_HEIGHT - 6}" text-anchor="middle">{label}</text>'
        for at, label in enumerate(labels)
        if label
    ]
    style = 'style="fill:var(--muted);font-size:13px"'
    return f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" {style}>{"".join([*guides, *shapes, *texts])}</svg>'


def _ticks(highest: float) -> list[float]:
    """Three to six numbers of a scale for counts, from 0 to at least the highest.

    >>> _ticks(7), _ticks(3), _ticks(21)
    ([0.0, 2.0, 4.0, 6.0, 8.0], [0.0, 1.0, 2.0, 3.0], [0.0, 5.0, 10.0, 15.0, 20.0, 25.0])
    """
    step = 1.0
    while step * 5 < highest:
        step *= 2.5 if str(step)[0] == "2" else 2
    return [step * at for at in range(max(2, math.ceil(highest / step)) + 1)]


def _short(value: float) -> str:
    """A number on an axis.

    >>> _short(1500.0), _short(2e6), _short(0.25)
    ('1.5k', '2M', '0.25')
    """
    for unit, sign in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= unit:
            return f"{value / unit:.3g}{sign}"
    return f"{value:.3g}"
