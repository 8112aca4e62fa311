"""The warning of commands that an app on macOS may not find."""

from pathlib import Path

import pytest

from mcpguard.clients.catalog import BY_KEY
from mcpguard.clients.discovery import Machine, Source
from mcpguard.clients.entries import Entry
from mcpguard.clients.installing import SHORT, short_path_warnings
from mcpguard.clients.plan import ChangePlan, EntryOutcome
from tests.clients.installations import program


def outcome(command: str, client: str = "claude-desktop", action: str = "guard") -> EntryOutcome:
    location = BY_KEY[client].locations[0]
    source = Source(BY_KEY[client], "user", Path("/f.json"), location.layout, location.dialect)
    return EntryOutcome(source, Entry("crm", "stdio", (command, "-y") if command else ()), action)


def warnings(home: Path, *outcomes: EntryOutcome, path: str = "", system: str = "darwin") -> list[str]:
    plan = ChangePlan(home / "state", Machine(home, {"PATH": path}, system))
    plan.outcomes += outcomes
    return list(short_path_warnings(plan))


pytestmark = pytest.mark.posix  # programs of macOS are found by their modes


def test_a_command_beyond_the_short_path_is_named_once_with_its_full_path_and_that_of_what_it_needs(tmp_path: Path) -> None:
    npx = program(tmp_path / "tools/npx-9", "#!/usr/bin/env node-9\n")
    node = program(tmp_path / "node/node-9")
    found = [outcome("npx-9"), outcome("npx-9"), outcome("npx-9", "cursor"), outcome("sh")]
    (warning,) = warnings(tmp_path, *found, path=f"{npx.parent}:{node.parent}")
    assert warning == (
        "npx-9 is not on the PATH of apps that the Dock starts. If Claude Desktop or Cursor cannot start a server with it, "
        f'write {npx} in its place, and "PATH": "{npx.parent}:{node.parent}:{SHORT}" into env'
    )


@pytest.mark.parametrize("folder", [".local/bin", ".volta/bin", ".asdf/shims", ".nvm/versions/node/v22.1.0/bin"])
def test_it_is_looked_for_where_package_managers_put_it(tmp_path: Path, folder: str) -> None:
    program(tmp_path / ".nvm/versions/node/v9.0.0/bin/uvx-9")
    found = program(tmp_path / folder / "uvx-9")
    (warning,) = warnings(tmp_path, outcome("uvx-9"))
    assert f'write {found} in its place, and "PATH": "{found.parent}:{SHORT}" into env' in warning


def test_a_command_that_is_found_nowhere_is_named_too(tmp_path: Path) -> None:
    (warning,) = warnings(tmp_path, outcome("npx-9"))
    assert warning.endswith("cannot start a server with it, write its full path")


def test_a_path_a_client_in_a_terminal_a_server_that_stays_and_another_system_bring_no_warning(tmp_path: Path) -> None:
    for other in ("/opt/npx-9", "sh", ""):
        assert warnings(tmp_path, outcome(other)) == []
    assert warnings(tmp_path, outcome("npx-9", "claude-code"), outcome("npx-9", action="keep")) == []
    assert warnings(tmp_path, outcome("npx-9"), system="linux") == []
