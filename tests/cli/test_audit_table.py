"""The table of audit rows, and what terminals of several widths show: what the files in `shown` have."""

import re
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import pytest
from rich.cells import cell_len

from mcpguard.cli.audit.tail import Table
from mcpguard.session.audit import Outcome, line, with_outcome
from mcpguard.stores.sqlite.store import SqliteStore
from tests.build import WALL_US, Session, Talk, Time, identity
from tests.cli.command import compare, on_terminal
from tests.end_to_end.host import rule

WIDTHS = (40, 80, 160)
DAY_US = 86_400_000_000

POLICY = (
    rule("2/1h", user="*", tool="search_customers")
    + rule("deny", tool="delete_user")
    + rule("1/1m", user="*", tool="查询所有客户的订单", mode="observe")
)

COMMANDS = {
    "tail": ("audit", "tail"),
    "tail-denied": ("audit", "tail", "--denied", "-n", "2"),
    "show": ("audit", "show", "00000000000000aa-8"),
}
"""Commands, by the names of their files."""


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with rows of two days and two users. There is no policy file, because its path would differ each time."""
    home = tmp_path_factory.mktemp("home")
    time, wall = Time(), Time(WALL_US + DAY_US // 2)
    store = SqliteStore(home / "mcpguard.db", clock=time, wall=wall)
    alice = Session(store, POLICY, session="00000000000000aa")
    who = identity("bob", "Cursor::background::nightly-report-of-all-orders", "数据库")
    bob = Session(store, POLICY, session="00000000000000bb", who=who)
    for session in (alice, bob):
        session.machine.start()
        session.write_rows(wall())

    def call(session: Session, tool: str, *outcomes: str) -> None:
        verdicts = session.call(tool, len(outcomes))
        ended = [(verdict.row_id, outcome) for verdict, outcome in zip(verdicts, outcomes, strict=True) if outcome]
        store.record([Outcome(row_id, outcome, 41_250) for row_id, outcome in ended if row_id])

    def pass_us(us: int) -> None:
        time.now_us += us
        wall.now_us += us
        store.append([row for session in (alice, bob) for row in session.journal.flush(wall())])

    call(alice, "search_customers", "ok", "tool_error", "")
    pass_us(3 * DAY_US)
    call(alice, "delete_user", "")
    call(alice, "search_customers", "ok", "ok", *[""] * 148)
    pass_us(1_000_000)
    call(bob, "查询所有客户的订单", "ok", "rpc_error")
    call(bob, "a_tool_with_a_name_of_more_than_forty_characters", "")
    store.close()
    return home


@pytest.mark.parametrize("coloured", [False, True], ids=["plain", "coloured"])
@pytest.mark.parametrize("columns", WIDTHS)
@pytest.mark.parametrize("name", COMMANDS)
def test_a_terminal_shows_what_its_file_has(filled: Path, name: str, columns: int, *, coloured: bool) -> None:
    status, text = on_terminal(filled, *COMMANDS[name], columns=columns, TZ="UTC", NO_COLOR="" if coloured else "1")
    assert status == 0
    if not coloured:
        too_wide = [line for line in text.splitlines() if cell_len(line) > columns and "mcpguard policy set" not in line]
        assert too_wide == []
    compare(f"{name}-{columns}{'-coloured' if coloured else ''}.txt", re.sub("\x1b", "^[", text))


ROW = {"time_us": 0, "decision": "rate_limited", "axis": "user", "user": "bob", "agent": "a::b::c", "tool": "echo", "count": 3}


@pytest.mark.parametrize(
    ("more", "end"),
    [
        ({"limit": 5, "window": "1m", "retry_after_ms": 1500}, "3 5/1m      retry 2s"),
        ({"limit": 2, "counts": "concurrent", "reason": "concurrent"}, "3 2 at once concurrent"),
        ({"limit": 9, "window": "1h", "counts": "cost", "reason": "too_costly"}, "3 9 u/1h    too_costly"),
        ({"limit": 3, "window": "1m", "counts": "errors", "reason": "failing", "retry_after_ms": 9000}, "3 3 err/1m  retry 9s"),
        ({"decision": "denied", "rule": "tool=echo", "count": ""}, " deny"),
        ({"decision": "allowed", "limit": 2, "counts": "concurrent", "outcome": "ok"}, "2 at once ok"),
    ],
)
def test_a_row_shows_its_limit_and_its_outcome_or_when_to_come_back(more: dict[str, Any], end: str) -> None:
    line = click.unstyle(Table(80).lines(ROW | more)[-1])
    assert len(line) < 80
    assert line.endswith(end)


@pytest.mark.parametrize(("width", "with_id"), [(119, False), (120, True), (154, True), (155, True), (200, True)])
def test_a_table_of_at_least_120_columns_has_the_ids_that_audit_show_takes(width: int, with_id: bool) -> None:
    lines = Table(width).lines(ROW | {"id": "45732ae6c06cfb07-4", "limit": 5, "window": "1m"})
    assert ("45732ae6c06cfb07-4" in lines[-1]) == with_id
    assert max(len(click.unstyle(line)) for line in lines) < width


def test_a_call_that_warns_shows_the_limit_of_which_it_does() -> None:
    warned = [{"axis": "agent", "limit": 9, "window": "1h", "count": 8}]
    found = {**ROW, "decision": "allowed", "limit": 5, "window": "1m", "outcome": "ok", "warned": warned}
    assert click.unstyle(Table(80).lines(found)[-1]).split()[1:] == ["warned", "agent", "echo", "8", "9/1h", "ok"]
    assert "would_deny" in click.unstyle(Table(80).lines(found | {"decision": "would_deny"})[-1])


@pytest.fixture
def row() -> dict[str, object]:
    """The record of an allowed call."""
    talk = Talk()
    talk.call("search")
    return talk.records[0]


def local(us: int, form: str) -> str:
    return time.strftime(form, time.localtime(us / 1_000_000))


def test_in_a_table_the_row_of_an_outcome_has_the_time_of_the_outcome(row: dict[str, object]) -> None:
    table = Table(80)
    at = [local(us, "%H:%M:%S") for us in (WALL_US, WALL_US + 2_000_000)]
    assert [line.split() for line in table.lines(row)[3:]] == [[at[0], "allowed", "search"]]
    ended = with_outcome(row, Outcome(1, "ok", 2_000_000))
    assert [line.split() for line in table.lines(ended, ended=True)] == [[at[1], "ended", "search", "ok"]]


@pytest.mark.usefixtures("a_day_ahead")
def test_the_table_has_the_times_of_any_zone(row: dict[str, object]) -> None:
    tomorrow = datetime.fromtimestamp(WALL_US // 1_000_000 + 86_400, UTC)
    _, date, _, shown = Table(80).lines(row)
    assert [date, shown.split()[0]] == tomorrow.strftime("%Y-%m-%d %H:%M:%S").split()


@pytest.mark.parametrize("width", [80, 120, 160])
def test_a_row_for_many_denials_shows_their_number_at_any_width(width: int) -> None:
    talk = Talk(rule("deny", user="*", tool="closed*"))
    for at in range(500):
        talk.call(f"closed {at}")
    talk.store.append(talk.journal.flush(WALL_US, all_of_them=True))
    first, *_, summed = talk.records
    table = Table(width)
    lines = [click.unstyle(table.lines(one)[-1]) for one in (first | {"tool": "x" * 300, "repeats": 7}, summed)]
    assert max(map(len, lines)) < width
    assert re.search(r" denied +user .*x+… ×7 +deny", lines[0])
    assert re.search(rf" denied +user .*mor.* ×{summed['repeats']} +deny", lines[1])
    assert f'repeats={summed["repeats"]} reason="more of this kind, not kept one by one"' in line(summed)


def test_a_row_for_denials_by_limits_of_one_size_and_several_windows_shows_no_limit() -> None:
    talk = Talk(rule("1/1m", tool="a*", per=[]) + rule("1/1h", tool="b*", per=[]))
    for at in range(300):
        talk.call(f"a{at}")
        talk.call(f"b{at}")
    talk.store.append(talk.journal.flush(WALL_US, all_of_them=True))
    shown = click.unstyle(Table(80).lines(talk.records[-1])[-1])
    assert re.search(r" rate_limited tool  more.* ×\d+ +more of th…$", shown)
