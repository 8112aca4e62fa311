from pathlib import Path

import pytest
from rich.cells import cell_len

from mcpguard.cli.audit.stats import _table
from mcpguard.reading.statistics import KEYS, Statistic, statistics
from mcpguard.stores.api import Group, Tally
from tests.cli.command import compare, complaint, mcpguard, objects, on_terminal, output


def counted(home: Path, *argv: str) -> dict[str, tuple[int, int, int, int]]:
    (found,) = objects(home, "audit", "stats", "--json", *argv)
    return {one["key"]: (one["calls"], one["allowed"], one["denied"], one["would_deny"]) for one in found["rows"]}


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ([], {"echo": (2, 1, 1, 0), "closed": (1, 0, 1, 0), "watched": (1, 0, 0, 1)}),
        (["--by", "user"], {"alice@acme.com": (2, 1, 1, 0), "bob": (2, 0, 1, 1)}),
        (["--by", "agent", "--user", "bob"], {"Cursor::background::nightly": (2, 0, 1, 1)}),
        (["--by", "server"], {"crm": (2, 1, 1, 0), "files": (2, 0, 1, 1)}),
        (["--by", "axis"], {"user": (2, 1, 1, 0), "tool": (2, 0, 1, 1)}),
        (["--by", "decision", "--user", "bob"], {"denied": (1, 0, 1, 0), "would_deny": (1, 0, 0, 1)}),
        (["--denied"], {"echo": (1, 0, 1, 0), "closed": (1, 0, 1, 0)}),
        (["--since", "9999-01-01T00:00:00Z"], {}),
    ],
)
def test_calls_are_counted_by_key_with_their_repeats(home: Path, argv: list[str], expected: dict[str, tuple[int, ...]]) -> None:
    assert counted(home, *argv) == expected


@pytest.mark.parametrize("by", KEYS)
def test_whatever_calls_are_counted_by_their_sum_is_the_same(home: Path, by: str) -> None:
    assert sum(calls for calls, *_ in counted(home, "--by", by).values()) == 4


def test_hours_are_in_their_order_and_calls_without_a_key_have_none() -> None:
    def group(hour: int, axis: str | None) -> Group:
        return Group('{"user":"alice"}', axis, "allowed", "ok", hour)

    tallies = [Tally(2, {group(490_909, None): {1000: 1}, group(490_908, "user"): {1000: 2}})]
    hours, total = statistics(tallies, "hour")
    assert [(one.key, one.calls) for one in hours] == [("2026-01-01T12:00:00Z", 2), ("2026-01-01T13:00:00Z", 1)]
    assert [(one.key, one.calls) for one in statistics(tallies, "axis")[0]] == [("user", 2), (None, 1)]
    assert total.calls == 3


@pytest.mark.parametrize("us", [0, 7, 999, 1009, 123_456, 99_999_999])
def test_percentiles_are_of_the_nearest_rank_and_exact_to_half_a_percent(us: int) -> None:
    from mcpguard.stores.rows import rounded_us

    durations: dict[int | None, int] = {rounded_us(us): 95, rounded_us(10**10): 5, None: 50}
    group = Group("{}", None, "allowed", "ok", 0)
    one = statistics([Tally(1, {group: durations})], "decision")[1]
    assert one.calls == 150
    for found in (one.p50_ms, one.p95_ms):
        assert found == pytest.approx(us / 1000, rel=0.005)
    assert one.p99_ms == pytest.approx(10_000_000, rel=0.005)


def test_errors_are_calls_that_the_tool_or_the_server_failed() -> None:
    outcomes = ("ok", "tool_error", "rpc_error", "cancelled", None)
    calls: dict[Group, dict[int | None, int]] = {Group("{}", None, "allowed", outcome, 0): {None: 1} for outcome in outcomes}
    calls[Group("{}", None, "policy", None, 0)] = {None: 9}
    assert statistics([Tally(1, calls)], "outcome")[1][:6] == ("total", 5, 5, 0, 0, 2)


@pytest.mark.parametrize("columns", [64, 80, 160])
def test_the_table_is_as_it_was_looked_at(columns: int) -> None:
    found = [
        Statistic("search_customers", 1_234_567, 1_000_000, 234_000, 567, 12, 1.25, 250.5, 61_000.0),
        Statistic("客户服务部门的爱丽丝" * 5, 5, 0, 5, 0, 0, None, None, None),
        Statistic(None, 1, 1, 0, 0, 0, 9.5, 9.5, 9.5),
    ]
    lines = _table("tool", found, columns)
    assert max(map(cell_len, lines)) < columns
    compare(f"stats-{columns}.txt", "\n".join(lines) + "\n")


def test_a_table_on_a_narrow_terminal_still_shows_what_is_counted() -> None:
    one = Statistic("search_customers", *[1] * 5, *[None] * 3)
    for width in (50, 60, 70):
        assert _table("tool", [one], width)[1].startswith("search_customers ")
    assert _table("tool", [one], 30)[1].startswith("search_… ")


def test_a_table_of_80_columns_shows_each_hour_as_a_whole() -> None:
    found = [Statistic(hour, *[1] * 5, *[None] * 3) for hour in ("2026-01-01T12:00:00Z", None)]
    assert [line.split()[0] for line in _table("hour", found, 80)[1:]] == ["2026-01-01T12:00Z", "-"]


def test_a_terminal_gets_a_table_with_a_total_and_a_pipe_gets_keys_and_values(home: Path) -> None:
    heading, *_, total = on_terminal(home, "audit", "stats")[1].splitlines()
    assert heading.split()[:2] == ["TOOL", "CALLS"]
    assert total.split()[:2] == ["total", "4"]
    assert output(home, "audit", "stats").startswith("tool=echo calls=2 allowed=1 denied=1 would_deny=0 errors=0 p50_ms=")


def test_without_rows_it_says_so_on_stderr(home: Path) -> None:
    for name in ("nobody", ""):
        assert mcpguard(home, "audit", "stats", "--user", name).stderr == "mcpguard: no calls match\n"
    assert objects(home / "empty", "audit", "stats", "--json", "--by", "user") == [{"by": "user", "rows": []}]
    complaint(home, "audit", "stats", "--by", "colour")
