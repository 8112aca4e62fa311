"""Makes the page of a report: one HTML file that asks no other place for anything."""

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.resources import files
from typing import Final, NamedTuple, TypeVar

from mcpguard import __version__
from mcpguard.limiter.plan import Reported
from mcpguard.policy.model import Policy, Rate, Rule
from mcpguard.policy.suggest import with_headroom
from mcpguard.reading.statistics import Figures
from mcpguard.report import charts
from mcpguard.report.charts import Series
from mcpguard.report.gather import AXES, Burst, Findings, Named, Use
from mcpguard.text.printing import printable
from mcpguard.text.times import span_in_words, window

TOP: Final = 10
"""How many names a table has."""

_LIMITS: Final = 20
"""How many limits a table has."""

_DAY_US: Final = 86_400_000_000
_LABELS: Final = 8
"""The most points of a chart that have a label: there is room for no more."""

_ERROR_COLOURS: Final = {"tool_error": "orange", "rpc_error": "violet"}
_Name = TypeVar("_Name", str, tuple[str, str])

_AXIS_COLOURS: Final = {"user": "blue", "agent": "orange", "tool": "violet", "none": "grey"}


def page(findings: Findings, policy: Policy | None, *, namespace: str, filters: str, made_us: int) -> str:
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
    environment.filters |= {"number": _number, "share": _share, "ms": _ms, "name": _name}
    template = environment.from_string((files("mcpguard.report") / "page.html").read_text("utf-8"))
    unused = unreached(policy, findings.limits) if policy and not filters else []
    return template.render(
        version=__version__,
        namespace=namespace,
        filters=filters,
        since=_time(findings.since_us),
        until=_time(findings.until_us),
        begin=_time(findings.first_us) if findings.first_us > findings.since_us else "",
        made=_time(made_us),
        slot=_span(findings.slot_us),
        total=findings.all,
        decisions=findings.decisions.most_common(),
        outcomes=findings.all.outcomes.most_common(),
        quantiles=findings.all.percentiles_ms(),
        charts=_charts(findings),
        slots=_slot_rows(findings),
        has_would=findings.all.would_deny > 0,
        bursts=[_burst(one) for one in findings.bursts.worst()],
        tops=[
            ("Users", "user", _top(findings.users)),
            ("Agents", "agent", _top(findings.agents)),
        ],
        tools=_tools(findings.tools),
        limits=_fired(findings),
        unreached=unused[:_LIMITS],
        unreached_more=max(0, len(unused) - _LIMITS),
        policy=policy,
    )


class Chart(NamedTuple):
    """A chart of the page.

    Attributes:
        title: Its title.
        what: What it shows, as a sentence.
        legend: The name and the colour of each series.
        svg: The drawing.
    """

    title: str
    what: str
    legend: Sequence[tuple[str, str]]
    svg: str


def _charts(findings: Findings) -> list[Chart]:
    slots = findings.slots
    labels = _labels(findings)
    each = _span(findings.slot_us)
    counted = [
        (
            "Calls",
            f"Calls per {each}.",
            [
                Series("allowed", "green", [slot.figures.allowed or None for slot in slots]),
                Series("would be denied", "amber", [slot.figures.would_deny or None for slot in slots]),
                Series("denied", "red", [slot.figures.denied or None for slot in slots]),
            ],
        ),
        (
            "Denials by axis",
            f"Calls that were not forwarded, per {each}, by the axis of the limit.",
            _by_axis([slot.denied for slot in slots]),
        ),
        (
            "Would-be denials by axis",
            f"Calls that observed limits would have denied, per {each}, by the axis of the limit.",
            _by_axis([slot.would_deny for slot in slots]),
        ),
        (
            "Errors",
            f"Calls that failed, per {each}, by their outcome.",
            [
                Series(word, colour, [slot.figures.outcomes[word] or None for slot in slots])
                for word, colour in _ERROR_COLOURS.items()
            ],
        ),
    ]
    found: list[Chart] = []
    for title, what, series in counted:
        if shown := [one for one in series if any(one.values)]:
            found.append(Chart(title, what, _legend(shown), charts.stacked(labels, shown)))
    percentiles = [slot.figures.percentiles_ms() for slot in slots]
    durations = [
        Series(name, colour, [one[at] for one in percentiles])
        for name, colour, at in (("p99", "violet", 2), ("p95", "orange", 1), ("p50", "blue", 0))
    ]
    if any(durations[0].values):
        what = f"Milliseconds from the call to its answer, per {each}. The scale is logarithmic."
        found.append(Chart("Durations", what, _legend(durations), charts.lines(labels, durations)))
    return found


def _by_axis(counts: Sequence[Counter[str]]) -> list[Series]:
    return [
        Series("no limit" if axis == "none" else axis, _AXIS_COLOURS[axis], [one[axis] or None for one in counts])
        for axis in AXES
    ]


def _legend(series: Sequence[Series]) -> list[tuple[str, str]]:
    return [(one.name, one.colour) for one in series]


def _labels(findings: Findings) -> list[str]:
    """The label of each slot: the time or the date. At most `_LABELS` slots have one."""
    starts = [_time(findings.first_us + at * findings.slot_us) for at in range(len(findings.slots))]
    period_us = len(starts) * findings.slot_us
    points = [at for at, start in enumerate(starts) if period_us <= 2 * _DAY_US or start.endswith("00:00")]
    part = slice(11, 16) if period_us <= 2 * _DAY_US else slice(5, 10) if period_us < 300 * _DAY_US else slice(0, 10)
    shown = points[:: -(-len(points) // _LABELS)]
    return [start[part] if at in shown else "" for at, start in enumerate(starts)]


def _slot_rows(findings: Findings) -> list[dict[str, object]]:
    """The numbers of the charts, without slots in which nothing was called."""
    rows = []
    for at, slot in enumerate(findings.slots):
        if slot.figures.calls:
            figures = slot.figures
            rows.append(
                {
                    "time": _time(findings.first_us + at * findings.slot_us),
                    "figures": figures,
                    "denied": [slot.denied[axis] for axis in AXES],
                    "would_deny": [slot.would_deny[axis] for axis in AXES],
                    "quantiles": figures.percentiles_ms(),
                }
            )
    return rows


def _top(named: Named[_Name]) -> list[tuple[_Name, Figures, float]]:
    """The names with the most calls, their figures, and their length as a bar in percent."""
    top = named.top(TOP)
    most = max((figures.calls for _, figures in top), default=1)
    return [(name, figures, 100 * figures.calls / most) for name, figures in top]


def _tools(named: Named[tuple[str, str]]) -> list[dict[str, object]]:
    rows = []
    for (server, tool), figures, width in _top(named):
        rows.append({"server": server, "tool": tool, "figures": figures, "width": width, "quantiles": figures.percentiles_ms()})
    return rows


def _fired(findings: Findings) -> list[tuple[Reported, int, int]]:
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
    for rule, _ in policy.parts:
        for rate, limit in zip(rule.bounds, rule.reported, strict=False):  # `deny` has no rate
            use = uses.get(limit, Use())
            if use.denied or use.would_deny or use.was_full:
                continue
            lower = with_headroom(use.peak) if use.peak and rule.counts == "calls" else rate.n
            if lower < rate.n:
                found.append(Unreached(rule, rate, limit, use.peak, lower, _command(rule, rate, lower)))
            else:
                found.append(Unreached(rule, rate, limit, use.peak, None, ""))
    return found


def _command(rule: Rule, changed: Rate, n: int) -> str:
    """The command line that gives a rule another limit in place of one."""
    rates = tuple(rate._replace(n=n) if rate == changed else rate for rate in rule.rates)
    return shlex.join(["mcpguard", "policy", "set", *rule._replace(rates=rates).setting])


def _burst(burst: Burst) -> Mapping[str, object]:
    decision, user, agent, server, tool, limit = burst.kind
    return {
        "calls": burst.calls,
        "first": _time(burst.first_us, seconds=True),
        "lasted": _span(burst.last_us - burst.first_us),
        "decision": decision,
        "user": user,
        "agent": agent,
        "server": server,
        "tool": tool,
        "limit": limit,
    }


def _time(time_us: int, *, seconds: bool = False) -> str:
    """A time in UTC, to the minute or the second."""
    return datetime.fromtimestamp(time_us // 1_000_000, UTC).strftime("%Y-%m-%d %H:%M:%S" if seconds else "%Y-%m-%d %H:%M")


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
