"""What commands have in common that show names: no name controls a terminal, and lines fit a terminal or eighty columns.

The screens of `audit tail`, `audit stats` and `usage` that others compare have wide names, too.
"""

import json
from pathlib import Path

import pytest
from rich.cells import cell_len

from tests.cli.account import PROGRAM, listing
from tests.cli.command import calls, mcpguard, on_terminal
from tests.end_to_end.host import policy, rule

ESCAPE, ODD = "\x1b[2J\x07", "\x9b31m\r\u2028\u202e"
USER, TOOL = f"{ESCAPE}{'客户服务部门的爱丽丝' * 2}", f"{ESCAPE}{'查询所有客户的订单' * 3}"
AGENT, SERVER = f"智能助理{ESCAPE}::subagent::👩{'探索者' * 3}", f"{ESCAPE}数据库服务器"

RULES = (("policy", "show"), ("policy", "explain", "--tool", TOOL, "--agent", AGENT, "--server", SERVER))
COMMANDS = (*RULES, ("clients",), ("doctor",))
OTHERS = (("audit", "tail"), ("audit", "show", "last"), ("audit", "stats"), ("usage",), ("reset",), ("whoami",))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rules, calls, settings and a client's file, all with names that would control a terminal and take much room."""
    home = tmp_path_factory.mktemp("home")
    (home / "config.toml").write_text(f"[identity]\nuser = {json.dumps(USER)}\n", "utf-8")
    policy(home, rule("1/1h", user=USER, tool=TOOL, server=SERVER, name=ODD) + rule("5/1h", user="*", agent=AGENT))
    calls(home, TOOL, 2, "--agent", AGENT, "--server", SERVER)
    (home / ".cursor").mkdir()
    (home / ".cursor/mcp.json").write_text(listing(**{SERVER: {"command": TOOL, "args": ["word " * 20]}}), "utf-8")
    return home


@pytest.mark.parametrize("argv", COMMANDS + OTHERS, ids=lambda argv: " ".join(argv[:2]))
def test_no_name_controls_a_terminal(home: Path, argv: tuple[str, ...]) -> None:
    _, shown = on_terminal(home, *argv, typed=b"n\n", columns=200, NO_COLOR="1", HOME=str(home))
    done = mcpguard(home, *argv, HOME=str(home))
    for text in (shown, done.stdout + done.stderr):
        assert [char for char in text if char != "\n" and not char.isprintable()] == []
    assert r"\x1b" in shown


@pytest.mark.parametrize(
    ("argv", "coloured"),
    [
        (("policy", "show"), "\x1b[1m"),
        (RULES[1], "\x1b[32m"),
        (("clients",), "\x1b[1mCursor"),
        (("doctor", "--agent", "a::b"), "\x1b[31mFAIL\x1b[0m"),
        (("usage",), "\x1b[31m████████"),
    ],
    ids=lambda value: " ".join(value[:2]) if isinstance(value, tuple) else "",
)
def test_a_terminal_gets_colours(home: Path, argv: tuple[str, ...], coloured: str) -> None:
    assert coloured in on_terminal(home, *argv, HOME=str(home))[1]


@pytest.mark.parametrize(
    ("argv", "columns"),
    [*((argv, columns) for argv in COMMANDS for columns in (80, 160)), (("clients",), 40), (("doctor",), 60)],
    ids=lambda value: " ".join(value[:2]) if isinstance(value, tuple) else value,
)
def test_no_line_is_wider_than_the_terminal_but_for_a_path(home: Path, argv: tuple[str, ...], columns: int) -> None:
    _, shown = on_terminal(home, *argv, columns=columns, NO_COLOR="1", HOME=str(home))
    lines = [line for line in shown.splitlines() if not any(path in line for path in (home.name, PROGRAM))]
    assert [line for line in lines if cell_len(line.rstrip()) > columns] == []


@pytest.mark.parametrize(("argv", "heading"), [(RULES[0], "MEANING"), (RULES[1], "STATUS")], ids=["show", "explain"])
def test_rules_are_a_table_on_a_terminal_and_folded_text_in_a_pipe(home: Path, argv: tuple[str, ...], heading: str) -> None:
    assert heading in on_terminal(home, *argv)[1]
    piped = mcpguard(home, *argv).stdout
    assert heading not in piped
    assert 60 < max(cell_len(line) for line in piped.splitlines() if home.name not in line) <= 80
