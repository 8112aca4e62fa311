"""Renews the figures in the manual's page about performance: what stands between two marks is replaced."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from . import hooks
from .calls import PLACES
from .report import Section
from .session import BenchmarkError
from .variants import CAT, GUARD, LEAST, ROOT

PAGE: Final = ROOT / "docs" / "performance.md"
END: Final = "<!-- end of these figures -->"

Found = dict[tuple[str, str, str], float]
"""Figures by section, row and variant."""

OTHERS: Final = {"bare": "bare server", LEAST.name: "smallest possible relay", "warden": "mcp-warden", CAT.name: "`cat`"}
"""What mcpguard is compared with, and how the table names it. Peers are in the table by these names only."""


@dataclass(frozen=True, slots=True)
class Line:
    """A row of the table.

    Attributes:
        text: What was measured.
        places: Section and row of each of its figures, which stand with slashes between them.
        unit: Their unit.
        also: Further figures of mcpguard itself to compare with: their name, and section and row of each.
    """

    text: str
    places: Sequence[tuple[str, str]]
    unit: str = ""
    also: tuple[str, Sequence[tuple[str, str]]] | None = None


def _placed(what: str, row: str, *places: str) -> list[tuple[str, str]]:
    return [(f"{what}, {PLACES[place]}", row) for place in places]


HOT, PACED = "calls one after another", "a call every 20 ms"
SDK, REDIS = "calls to a server on the Python SDK", "calls one after another, counters on Redis"
P50, P99, P999, PEAK = "added to p50, us", "added to p99, us", "p99.9 of all, us", "peak memory, MiB"
SHARED: Final = [f"{number} at once, calls/s" for number in (1, 4, 16)]
START: Final = "start to first answer"
LINES: Final = (
    Line(
        "time added to a call (median), a server on the Python SDK, on two cores / placed by the scheduler",
        _placed(SDK, P50, "split", "free"),
        "µs",
    ),
    Line("the same, a server that answers at once, on two cores / on one", _placed(HOT, P50, "split", "one"), "µs"),
    Line("the same, a call every 20 ms, on two cores / on one", _placed(PACED, P50, "split", "one"), "µs"),
    Line(
        "time added to the 99th percentile, one call after another, on two cores / on one",
        _placed(HOT, P99, "split", "one"),
        "µs",
    ),
    Line(
        "the 99.9th percentile of these calls, on two cores / on one",
        _placed(HOT, P999, "split", "one"),
        "µs",
    ),
    Line(
        "time added to a call (median), counters on Redis, on two cores / on one",
        _placed(REDIS, P50, "split", "one"),
        "µs",
        also=("one round trip to it", _placed(REDIS, "one round trip there, us", "split", "one")),
    ),
    Line("calls per second, if thousands of calls wait for answers", [("calls pipelined", "calls/s")]),
    Line("denials per second, of a client that does not wait", [("denials pipelined", "denials/s")]),
    Line(
        "calls per second, 1 / 4 / 16 clients that wait for each answer, one SQLite file",
        [("wrappers that share a store in SQLite", row) for row in SHARED],
        also=("the same, one Redis:", [("wrappers that share a store in Redis", row) for row in SHARED]),
    ),
    Line(
        "server → client, frames of 1 MiB / 64 KiB",
        [("server to client, MB/s", row) for row in ("1 MiB frames", "64 KiB frames")],
        "MB/s",
    ),
    Line(
        "first answer later than the bare server's, a server that boots in 1.7 ms",
        [(f"{START}, tiny server", "added, ms")],
        "ms",
    ),
    Line("the same, an SDK server", [(f"{START}, SDK server", "added, ms")], "ms"),
    Line(
        "a client's hook decides a call, from its start to its end: beyond `python -c pass`", [(hooks.TITLE, "added, ms")], "ms"
    ),
    Line("resident memory at its peak in a storm of denials", [("denials pipelined", PEAK)], "MiB"),
    Line(
        "the same, one call at a time / thousands of calls waiting",
        [*_placed(HOT, PEAK, "split"), ("calls pipelined", PEAK)],
        "MiB",
    ),
)


def markdown(sections: Sequence[Section]) -> str:
    """The table. A figure that was not measured is a dash, and what it would be compared with is left out."""
    found = {
        (section.title, row.label, variant): value
        for section in sections
        for row in section.rows
        for variant, value in row.values.items()
    }
    lines = ["", "| | mcpguard | for comparison |", "|---|---|---|"]
    for line in LINES:
        own = _cell(found, line.places, GUARD.name, line.unit) or "–"
        lines.append(f"| {line.text} | {own} | {', '.join(_comparisons(found, line))} |")
    return "\n".join([*lines, ""])


def _comparisons(found: Found, line: Line) -> Iterator[str]:
    for variant, name in OTHERS.items():
        if cell := _cell(found, line.places, variant, line.unit):
            yield f"{name} {cell}"
    if line.also and (cell := _cell(found, line.also[1], GUARD.name, line.unit)):
        yield f"{line.also[0]} {cell}"


def _cell(found: Found, places: Sequence[tuple[str, str]], variant: str, unit: str) -> str:
    """Figures with slashes between them; empty if one is missing."""
    values = [found.get((*place, variant)) for place in places]
    if None in values:
        return ""
    return " ".join([" / ".join(_rounded(value) for value in values if value is not None), unit]).strip()


def _rounded(value: float) -> str:
    """Two digits of a large figure, since the rest differs from run to run. An added time under 0 is chance.

    >>> _rounded(26_412), _rounded(1_482), _rounded(98.4), _rounded(-3.6)
    ('26,000', '1,500', '98', '0')
    """
    value = max(0.0, value)
    step = 10 ** max(0, len(str(round(value))) - 2) if value >= 1000 else 1
    return f"{round(value / step) * step:,}"


def begin(name: str) -> str:
    """The mark before the figures with a name."""
    return f"<!-- {name}: `python -m tests.benchmarks --docs` writes the figures that follow -->"


def renewed(page: str, figures: Mapping[str, str]) -> str:
    """The page with these figures, by name.

    Raises:
        BenchmarkError: A mark is missing.
    """
    for name, text in figures.items():
        before, mark, rest = page.partition(begin(name))
        _, end, after = rest.partition(END)
        if not mark or not end:
            raise BenchmarkError(f"{PAGE.name} does not have the lines {begin(name)} and {END}")
        page = f"{before}{mark}\n{text}\n{end}{after}"
    return page


def write(figures: Mapping[str, str]) -> None:
    """Renew figures in the page."""
    PAGE.write_text(renewed(PAGE.read_text(encoding="utf-8"), figures), encoding="utf-8")
