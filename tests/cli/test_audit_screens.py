"""Terminals of several widths show what the files in `shown` have, with and without colour."""

import re
from pathlib import Path

import pytest
from rich.cells import cell_len

from mcpguard.session.audit import Outcome
from mcpguard.stores.sqlite.store import SqliteStore
from tests.build import WALL_US, Session, Time, identity
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
    "tail-none": ("audit", "tail", "--decision", "denied", "--tool", "search_customers"),
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
    if not coloured and name != "tail-none":
        too_wide = [line for line in text.splitlines() if cell_len(line) > columns and "mcpguard policy set" not in line]
        assert too_wide == []
    compare(f"{name}-{columns}{'-coloured' if coloured else ''}.txt", re.sub("\x1b", "^[", text))
