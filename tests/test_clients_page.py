"""The tables of `docs/clients.md` agree with the program."""

import re
from pathlib import Path

import pytest

from mcpguard.clients.catalog import BY_KEY
from mcpguard.clients.discovery import Machine, client_paths, hook_files
from mcpguard.session import denial
from tests.pages import DOCS, rows

INSTALL, MEASURED = DOCS["clients.md"].split("### What was measured")
ROWS = rows(MEASURED)
CLIENTS = [(row[0], re.findall("`(.*?)`", row[1])[0], row[4]) for row in ROWS if row[0] != "client"]


@pytest.mark.parametrize(("client", "name", "form"), CLIENTS)
def test_each_client_gets_the_form_that_its_row_names(client: str, name: str, form: str) -> None:
    assert denial.form("auto", name, "crm") == form


def test_each_name_that_gets_the_result_has_a_row() -> None:
    names = [name for _, name, _ in CLIENTS]
    assert set(names) >= denial.RESULT_CLIENTS
    for beginning in denial.RESULT_CLIENT_BEGINNINGS:
        assert any(name.startswith(beginning) for name in names), beginning


def test_the_table_of_clients_is_that_of_install_and_each_file_in_it_is_looked_for() -> None:
    installed = [row for row in rows(INSTALL) if len(row) == 5 and row[0] != "client"]
    assert [row[1].strip("`") for row in installed] == list(BY_KEY)
    for title, key, user, project, after in installed:
        client = BY_KEY[key.strip("`")]
        assert (title, after) == (client.title, client.after)
        for folder, shown in ((None, user), (Path("/project"), project)):
            known = [path.as_posix() for path in client_paths(Machine(Path("/home/a"), {}, "linux"), client, folder)]
            for name in re.findall(r"`([^`]*/[^`]*|\.?[a-z]+\.json)`", shown):  # not a file extension, nor a folder
                path = name.replace("~", "/home/a") if folder is None else f"/project/{name}"
                is_known = any(path == one or one.endswith(f"/{name}") for one in known)
                assert is_known or name.endswith("/mcpServers"), name  # the names of files in this folder are free


def test_the_table_of_hooks_names_their_files() -> None:
    hooks = {row[0]: row for row in rows(INSTALL) if len(row) == 3 and row[0] != "client"}
    machine = Machine(Path("~"), {}, "linux")
    assert list(hooks) == [place.client.title for place in hook_files(machine)]
    for own, of_project in zip(hook_files(machine), hook_files(machine, project=Path("/p")), strict=True):
        _, user, project = hooks[own.client.title]
        assert user.startswith(f"`{own.file.as_posix()}`")
        assert project == f"`{of_project.file.relative_to('/p').as_posix()}`"
