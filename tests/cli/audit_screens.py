"""Writes what `audit tail` and `audit show` print on terminals of several widths: `python -m tests.cli.audit_screens`.

Look at a file before you commit it: the tests compare the output with these files.
"""

import re
import tempfile
from pathlib import Path
from typing import Final

from mcpguard.session.audit import Outcome
from mcpguard.stores.sqlite.store import SqliteStore
from tests.build import WALL_US, Session, Time, identity
from tests.cli.command import on_terminal

SCREENS: Final = Path(__file__).parent / "screens"
WIDTHS: Final = (40, 80, 160)
DAY_US: Final = 86_400_000_000

POLICY: Final = """
[[rule]]
user = "*"
tool = "search_customers"
limit = "2/1h"

[[rule]]
tool = "delete_user"
limit = "deny"

[[rule]]
user = "*"
tool = "查询所有客户的订单"
limit = "1/1m"
mode = "observe"
"""

COMMANDS: Final = {
    "tail": ("audit", "tail"),
    "tail-denied": ("audit", "tail", "--denied", "-n", "2"),
    "tail-none": ("audit", "tail", "--decision", "denied", "--tool", "search_customers"),
    "show": ("audit", "show", "00000000000000aa-8"),
}
"""Commands, by the names of their files."""


def fill(home: Path) -> None:
    """Write a store with rows of two days and two users. There is no policy file, because its path would differ each time."""
    time, wall = Time(), Time(WALL_US + DAY_US // 2)
    store = SqliteStore(home / "mcpguard.db", clock=time, wall=wall)
    alice = Session(store, POLICY, session="00000000000000aa")
    bob = Session(
        store,
        POLICY,
        session="00000000000000bb",
        who=identity("bob", "Cursor::background::nightly-report-of-all-orders", "数据库"),
    )
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


def screen(home: Path, name: str, columns: int, *, coloured: bool) -> str:
    """What a terminal receives, with `^[` for an escape character."""
    status, text = on_terminal(home, *COMMANDS[name], columns=columns, TZ="UTC", NO_COLOR="" if coloured else "1")
    assert status == 0
    return re.sub("\x1b", "^[", text)


def file(name: str, columns: int, *, coloured: bool) -> Path:
    """The file of a screen."""
    return SCREENS / f"{name}-{columns}{'-coloured' if coloured else ''}.txt"


if __name__ == "__main__":
    SCREENS.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        fill(Path(folder))
        for one in COMMANDS:
            for width in WIDTHS:
                for with_colour in (False, True):
                    text = screen(Path(folder), one, width, coloured=with_colour)
                    file(one, width, coloured=with_colour).write_text(text, "utf-8")
