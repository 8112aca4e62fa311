"""Terminals of several widths show what the files in `screens` have, with and without colour."""

from pathlib import Path

import pytest
from rich.cells import cell_len

from tests.cli.audit_screens import COMMANDS, SCREENS, WIDTHS, file, fill, screen


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("home")
    fill(home)
    return home


@pytest.mark.parametrize("coloured", [False, True], ids=["plain", "coloured"])
@pytest.mark.parametrize("columns", WIDTHS)
@pytest.mark.parametrize("name", COMMANDS)
def test_a_terminal_shows_what_its_file_has(home: Path, name: str, columns: int, *, coloured: bool) -> None:
    expected = file(name, columns, coloured=coloured).read_text("utf-8")
    assert screen(home, name, columns, coloured=coloured) == expected, (
        "run python -m tests.cli.audit_screens, and look at the files"
    )


def test_no_file_of_a_table_has_a_line_that_is_too_wide() -> None:
    for columns in WIDTHS:
        for name in ("tail", "tail-denied", "show"):
            lines = file(name, columns, coloured=False).read_text("utf-8").splitlines()
            assert [line for line in lines if cell_len(line) > columns and "mcpguard policy set" not in line] == []


def test_each_file_belongs_to_a_test() -> None:
    known = {file(name, columns, coloured=coloured) for name in COMMANDS for columns in WIDTHS for coloured in (False, True)}
    assert set(SCREENS.iterdir()) == known
