"""The tables of `docs/clients.md` agree with the program."""

import re
from pathlib import Path

import pytest

from mcpguard.core import denial

PAGE = (Path(__file__).parents[1] / "docs" / "clients.md").read_text()
ROWS = [[cell.strip() for cell in line.strip("|").split("|")] for line in PAGE.splitlines() if re.match(r"\| [^-]", line)]
CLIENTS = [(row[0], re.findall("`(.*?)`", row[1])[0], row[4]) for row in ROWS if row[0] != "client"]


@pytest.mark.parametrize(("client", "name", "form"), CLIENTS)
def test_each_client_gets_the_form_that_its_row_names(client: str, name: str, form: str) -> None:
    assert denial.form("auto", name) == form


def test_each_name_that_gets_the_result_has_a_row() -> None:
    names = [name for _, name, _ in CLIENTS]
    assert set(names) >= denial.RESULT_CLIENTS
    for beginning in denial.RESULT_CLIENT_BEGINNINGS:
        assert any(name.startswith(beginning) for name in names), beginning
