import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli.command import mcpguard
from tests.provider import KeyServer, settings, token, write_token

CLOSED_BUT_FOR_ADMINS = """
[[rule]]
tool  = "delete_user"
limit = "deny"

[[rule]]
tool  = "delete_user"
scope = "admin.users"
limit = "20/1h"
"""


def explained(home: Path, *argv: str, **env: Any) -> dict[str, Any]:
    done = mcpguard(home, "policy", "explain", "--tool", "delete_user", "--json", *argv, **env)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def refused(home: Path, *argv: str) -> list[str]:
    done = mcpguard(home, "policy", "explain", "--tool", "delete_user", *argv)
    assert done.returncode in {1, 2, 78}
    assert done.stdout == ""
    return done.stderr.splitlines()


@pytest.fixture
def home(tmp_path: Path, keys: KeyServer) -> Path:
    write_token(
        settings(tmp_path, keys.url, agent_claim="agent"), token(scope="admin.users", agent="Claude Code::api::nightly")
    )
    (tmp_path / "policy.toml").write_text(CLOSED_BUT_FOR_ADMINS, "utf-8")
    return tmp_path


@pytest.mark.parametrize("argv", [["--token"], []])
def test_user_agent_and_scopes_come_from_the_token(home: Path, argv: list[str]) -> None:
    found = explained(home, *argv)
    assert (found["call"]["user"], found["call"]["user_source"]) == ("alice", "jwt")
    assert (found["call"]["agent"], found["call"]["agent_source"]) == ("Claude Code::api::nightly", "jwt")
    assert found["next"]["decision"] == "allowed"


def test_for_another_user_it_says_that_their_token_may_name_the_agent(home: Path) -> None:
    text = mcpguard(home, "policy", "explain", "--tool", "delete_user", "--user", "bob").stdout
    assert "  agent:  unknown::interactive::default (the user's token may name another in" in text


def test_an_expired_token_is_reported_as_a_call_would_report_it(home: Path) -> None:
    write_token(home / "token", token(exp=1000))
    assert refused(home) == [
        f"mcpguard: every call is denied with 401: the token in {home / 'token'} expired at 1970-01-01T00:16:40Z",
        "hint: get a new token; the next call uses it, without a restart",
    ]


@pytest.mark.posix  # Windows makes up a folder for each name
def test_an_unknown_home_folder_of_the_token_is_reported_in_one_line(home: Path) -> None:
    assert (
        refused(home, "--token", "~nosuchuser/x")[0]
        == "mcpguard: --token: the home or working folder for ~nosuchuser/x does not exist"
    )


def test_a_user_and_a_token_together_are_a_usage_error(home: Path) -> None:
    assert refused(home, "--token", "x", "--user", "bob")[0] == "mcpguard: --user and --token both name the user"
