import re
from html.parser import HTMLParser

import pytest

from mcpguard.policy.parse import parse
from mcpguard.report import gather, page
from mcpguard.report.page import Series, lines, stacked
from mcpguard.text.printing import printable
from mcpguard.text.times import rfc3339
from tests.report.test_gather import of, stored
from tests.report.week import HOUR_US, POLICY, SINCE_US, UNTIL_US, week

HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "</style><svg onload=alert(1)>",
    "{{ 7 * 7 }}",
    "&lt;b&gt;",
    "abc\u202edcba\u200f",
    "line\u2028break\nnew\x1b[2Jline\x00",
    "x" * 256,
    "\U0001f600" * 64,
    "\ud800",
)


def page_of(found: gather.PeriodFindings, policy: str | None = POLICY, filters: str = "") -> str:
    parsed = None if policy is None else parse(policy)
    return page.page(found, parsed, namespace="default", filters=filters, made_us=UNTIL_US)


@pytest.fixture(scope="module")
def week_page() -> str:
    return page_of(gather.gather([list(week())], SINCE_US, UNTIL_US))


class Parsed(HTMLParser):
    """The tags, attributes and texts of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.texts: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_the_page_of_a_busy_week_is_under_500_kb(week_page: str) -> None:
    allowed = [("allowed", outcome) for outcome in ("ok", "tool_error", "rpc_error")]
    kinds = [*allowed, ("would_deny", "ok"), ("rate_limited", None), ("invalid", None)] * 5
    busiest = [
        stored(hour * HOUR_US + at, decision, "u" * 250 + str(at), "t" * 250 + str(at), outcome, repeats=hour + 5)
        for hour in range(168)
        for at, (decision, outcome) in enumerate(kinds)
    ]
    assert len(week_page.encode()) < 250_000
    assert len(page_of(of(*busiest)).encode()) < 500_000


def test_the_page_has_nothing_that_a_browser_would_load_or_run(week_page: str) -> None:
    parsed = Parsed(week_page)
    assert not {"script", "link", "img", "iframe", "object", "a", "form", "base"} & set(parsed.tags)
    names = {name for name, _ in parsed.attributes}
    assert not {"src", "href", "xlink:href", "action"} & names
    assert not [name for name in names if name.startswith("on")]
    assert "url(" not in week_page
    assert "@import" not in week_page
    assert "default-src 'none'" in week_page
    assert set(re.findall(r"https?://[^\"'<> ]+", week_page)) <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}


def test_colours_follow_the_theme(week_page: str) -> None:
    assert "prefers-color-scheme: dark" in week_page
    used, defined = (set(re.findall(pattern, week_page)) for pattern in (r"var\((--\w+)\)", r"(--\w+): #"))
    assert used <= defined
    assert [text for text in re.findall(r"<svg.*?</svg>", week_page, re.DOTALL) if re.search(r"#[0-9a-f]{6}", text)] == []


def test_every_number_of_the_charts_is_in_a_table(week_page: str) -> None:
    found = gather.gather([list(week())], SINCE_US, UNTIL_US)
    (numbers,) = re.findall(r"<details>.*?</details>", week_page, re.DOTALL)
    rows = re.findall(r"<tr><th class=\"time\">.*?</th>(.*?)</tr>", numbers)
    for cells, slot in zip(rows, [one for one in found.slots if one.figures.calls], strict=True):
        values = [value.replace("\u202f", "") for value in re.findall(r"<td class=\"n\">(.*?)</td>", cells)]
        figures = slot.figures
        expected = [figures.calls, figures.allowed, figures.denied, *(slot.denied[axis] for axis in gather.AXES)]
        expected += [figures.would_deny, *(slot.would_deny[axis] for axis in gather.AXES[:3])]
        assert values[:11] == [str(one) for one in expected]
        assert values[12:14] == [str(figures.outcomes[word]) for word in ("tool_error", "rpc_error")]
        durations_ms = [float(value.split()[0]) * (1000 if value.endswith(" s") else 1) for value in values[14:]]
        assert durations_ms == pytest.approx(figures.percentiles_ms(), rel=0.005)


@pytest.mark.parametrize(
    ("days", "labels"),
    [
        (1, ["00:00", "03:00", "06:00", "09:00", "12:00", "15:00", "18:00", "21:00"]),
        (3, ["01-05", "01-06", "01-07"]),
        (7, ["01-05", "01-06", "01-07", "01-08", "01-09", "01-10", "01-11"]),
        (30, ["01-05", "01-09", "01-13", "01-17", "01-21", "01-25", "01-29", "02-02"]),
        (60, ["01-05", "01-13", "01-21", "01-29", "02-06", "02-14", "02-22", "03-02"]),
    ],
)
def test_at_most_eight_points_of_a_chart_are_labelled_with_their_hours_or_dates(days: int, labels: list[str]) -> None:
    found = gather.gather([[stored(0, "allowed")]], SINCE_US, SINCE_US + days * 24 * HOUR_US)
    chart = re.findall(r"<svg viewBox=\"0 0 900 .*?</svg>", page_of(found), re.DOTALL)[0]
    shown = re.findall(r'<text x="([\d.]+)" [^>]*"middle">(.*?)</text>', chart)
    assert [label for _, label in shown] == labels
    for x, label in shown:
        slot = int((float(x) - 52) / (900 - 52) * len(found.slots))
        assert label in rfc3339(SINCE_US + slot * found.slot_us)


def test_the_page_says_where_charts_begin_if_that_is_later_than_the_period(week_page: str) -> None:
    assert "Charts begin with the first call, at 2026-01-07 03:00." in page_of(of(stored(51 * HOUR_US + 1, "allowed")))
    assert "Charts begin" not in week_page


@pytest.fixture(scope="module")
def plain() -> Parsed:
    """A page of calls with usual names."""
    rows = [stored(at, "rate_limited") for at in range(9)]
    return Parsed(page_of(of(*rows, stored(100, "allowed", outcome="ok"))))


@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
def test_a_name_changes_nothing_but_its_own_text(name: str, plain: Parsed) -> None:
    rows = [*(stored(at, "rate_limited", name, name) for at in range(9)), stored(100, "allowed", name, name, "ok")]
    hostile = Parsed(page_of(of(*rows), filters=f"--user {name}"))
    assert set(hostile.tags) - {"code"} <= set(plain.tags)
    assert not [attribute for attribute in hostile.attributes if attribute[0].startswith("on") or "alert" in attribute[1]]
    shown = "".join(hostile.texts)
    assert printable(name) in shown
    assert "\u202e" not in shown
    assert "\x1b" not in shown
    page_of(of(*rows)).encode()


def test_a_period_without_calls_has_a_page_that_says_so() -> None:
    text = page_of(of())
    assert "The audit log has no calls in this period" in text
    assert "<svg" not in text
    assert "Limits never reached" in text


def test_a_report_with_filters_does_not_call_a_limit_unused() -> None:
    found = gather.gather([list(week())], SINCE_US, UNTIL_US)
    assert "mcpguard policy set" in page_of(found)
    assert "mcpguard policy set" not in page_of(found, filters="--user alice")


def test_a_page_is_made_even_if_the_policy_is_not_valid() -> None:
    assert "The policy is not valid" in page_of(of(stored(0, "allowed")), None)


# Charts

LABELS = ["a", "", "c"]


def bars(svg: str, colour: str) -> list[tuple[float, float]]:
    """The y and the height of each bar of a colour."""
    found = re.findall(rf'<rect [^>]*y="([\d.]+)"[^>]*height="([\d.]+)"[^>]*--{colour}\)', svg)
    return [(float(y), float(height)) for y, height in found]


def test_bars_have_the_heights_of_their_values_and_stand_on_each_other() -> None:
    svg = stacked(LABELS, [Series("x", "green", [10, None, 20]), Series("y", "red", [10, None, None])])
    (low, high), (red,) = bars(svg, "green"), bars(svg, "red")
    assert high[1] == 2 * low[1] == 2 * red[1]
    assert red[0] + red[1] == low[0]
    assert re.findall(r">([^<>]+)</text>", svg) == ["0", "5", "10", "15", "20", "a", "c"]


def test_a_line_ends_where_there_is_no_value_and_a_lonely_point_is_seen() -> None:
    svg = lines(["", "", "", ""], [Series("x", "blue", [1, 10, None, 100])])
    (path,) = re.findall(r'<path d="(M[^"]*)" style="fill:none', svg)
    assert re.sub(r"[\d. ]+", "", path) == "MhLhMh"
    y = [float(one) for one in re.findall(r"[ML][\d.]+ ([\d.]+)h", path)]
    assert y[0] - y[1] == y[1] - y[2] > 0, "the scale is logarithmic"
    assert re.findall(r">([^<>]+)</text>", svg) == ["1", "10", "100"]
