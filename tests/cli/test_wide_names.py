"""Paragraphs and tables fit eighty columns, on a terminal and in a pipe. A wide character takes two columns.

The screens of `audit tail`, `audit stats` and `usage` that others compare have wide names, too.
"""

from pathlib import Path

import pytest
from rich.cells import cell_len

from tests.cli.command import mcpguard, on_terminal
from tests.end_to_end.host import policy, rule

USER, TOOL, SERVER = "客户服务部门的爱丽丝" * 2, "查询所有客户的订单" * 3, "数据库服务器"
AGENT = "智能助理::subagent::👩" + "探索者" * 3
WHO = ("--user", USER, "--agent", AGENT, "--server", SERVER)

SHOWN = [("policy", "show"), ("policy", "explain", "--tool", TOOL, *WHO)]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("home")
    rules = rule("3/1h", user=USER, tool=TOOL, server=SERVER) + rule("5/1h", user="*", agent=AGENT)
    policy(home, rules + '[[rule]]\nname = "所有的工具都在一起计算，没有例外"\ntool = "查*"\nlimit = ["7/1m", "70/1h"]\n')
    return home


@pytest.mark.parametrize("argv", SHOWN, ids=lambda argv: " ".join(argv[:2]))
@pytest.mark.parametrize("columns", [80, 100])
def test_a_terminal_has_no_line_that_is_too_wide(home: Path, argv: tuple[str, ...], columns: int) -> None:
    status, text = on_terminal(home, *argv, columns=columns, NO_COLOR="1")
    assert status == 0
    assert max(cell_len(line.rstrip()) for line in text.splitlines() if "policy.toml" not in line) <= columns
    assert USER[:4] in text


@pytest.mark.parametrize("argv", SHOWN, ids=lambda argv: " ".join(argv[:2]))
def test_paragraphs_in_a_pipe_are_folded_by_columns(home: Path, argv: tuple[str, ...]) -> None:
    text = mcpguard(home, *argv).stdout
    lines = [line for line in text.splitlines() if "policy.toml" not in line]
    assert max(map(cell_len, lines)) <= 80
    assert max(map(cell_len, lines)) > 60
    assert TOOL in text
    assert "\0" not in text
