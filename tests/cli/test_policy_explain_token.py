import json
from pathlib import Path

import pytest

from tests.cli.command import complaint, mcpguard, output
from tests.end_to_end.host import policy, rule
from tests.provider import KeyServer, settings, token, write_token

EXPLAIN = ("policy", "explain", "--tool", "delete_user")


@pytest.fixture
def home(tmp_path: Path, keys: KeyServer) -> Path:
    """A tool that is closed but for those with a scope, and the token of one of them."""
    file = settings(tmp_path, keys.url, agent_claim="agent")
    write_token(file, token(scope="admin.users", agent="Claude Code::api::nightly"))
    policy(tmp_path, rule("deny", tool="delete_user") + rule("20/1h", tool="delete_user", scope="admin.users"))
    return tmp_path


@pytest.mark.parametrize("argv", [["--token"], []])
def test_user_agent_and_scopes_come_from_the_token(home: Path, argv: list[str]) -> None:
    found = json.loads(output(home, *EXPLAIN, "--json", *argv))
    call = {"user": "alice", "user_source": "jwt", "agent": "Claude Code::api::nightly", "agent_source": "jwt"}
    assert found["call"].items() >= call.items()
    assert found["next"]["decision"] == "allowed"


def test_for_another_user_it_says_that_their_token_may_name_the_agent(home: Path) -> None:
    text = mcpguard(home, *EXPLAIN, "--user", "bob").stdout
    assert "  agent:  unknown::interactive::default (the user's token may name another in" in text


def test_an_expired_token_is_reported_as_a_call_would_report_it(home: Path) -> None:
    write_token(home / "token", token(exp=1000))
    why = f"every call is denied with 401: the token in {home / 'token'} expired at 1970-01-01T00:16:40Z"
    hint = "hint: get a new token; the next call uses it, without a restart"
    assert complaint(home, *EXPLAIN, status=1) == f"mcpguard: {why}\n{hint}\n"


@pytest.mark.posix  # Windows makes up a folder for each name
def test_an_unknown_home_folder_of_the_token_is_reported_in_one_line(home: Path) -> None:
    said = "mcpguard: --token: the home or working folder for ~nosuchuser/x does not exist\n"
    assert complaint(home, *EXPLAIN, "--token", "~nosuchuser/x").startswith(said)


def test_a_user_and_a_token_together_are_a_usage_error(home: Path) -> None:
    said = complaint(home, *EXPLAIN, "--token", "x", "--user", "bob")
    assert said.startswith("mcpguard: --user and --token both name the user\n")
