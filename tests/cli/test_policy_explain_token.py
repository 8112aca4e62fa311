import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli.command import mcpguard
from tests.end_to_end.host import Host, script
from tests.end_to_end.test_tokens import call_until
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
    (tmp_path / "policy.toml").write_text(CLOSED_BUT_FOR_ADMINS)
    return tmp_path


@pytest.mark.parametrize("argv", [["--token"], []])
def test_user_agent_and_scopes_come_from_the_token(home: Path, argv: list[str]) -> None:
    found = explained(home, *argv)
    assert (found["call"]["user"], found["call"]["user_source"]) == ("alice", "jwt")
    assert (found["call"]["agent"], found["call"]["agent_source"]) == ("Claude Code::api::nightly", "jwt")
    assert found["next"]["decision"] == "allowed"


CLAIMED = "Claude Code::api::nightly"


@pytest.mark.parametrize("argv", [["--token"], []])
def test_an_agent_that_the_token_names_overrides_the_option(home: Path, argv: list[str]) -> None:
    command = ("policy", "explain", "--tool", "delete_user", "--agent", "Claude Code::subagent::Explore", *argv)
    done = mcpguard(home, *command)
    assert f"  agent:  {CLAIMED} (the token)\n" in done.stdout
    assert done.stderr == f"warning: --agent: a call has another one, {CLAIMED}, since the token names it\n"
    with Host(home, *script("obedient"), options=["--agent", "Claude Code::subagent::Explore"]) as host:
        assert "result" in call_until(host, "delete_user", "result")
        assert host.end() == 0
        assert host.audit()[-1]["agent"] == CLAIMED
    assert mcpguard(home, "policy", "explain", "--tool", "x", "--agent", "::api::nightly", *argv).stderr == ""


def test_the_option_fills_in_the_parts_of_the_agent_that_the_token_does_not_name(home: Path) -> None:
    write_token(home / "token", token(agent="nightly"))
    done = mcpguard(home, "policy", "explain", "--tool", "delete_user", "--agent", "Codex::background::x")
    assert "  agent:  Codex::background::nightly (the token)\n" in done.stdout
    assert done.stderr.startswith("warning: --agent: a call has another one, Codex::background::nightly,")
    write_token(home / "token", token())
    done = mcpguard(home, "policy", "explain", "--tool", "delete_user", "--agent", "Codex::background::x")
    assert "  agent:  Codex::background::x\n" in done.stdout
    assert done.stderr == ""


def test_for_another_user_it_says_that_their_token_may_name_the_agent(home: Path) -> None:
    text = mcpguard(home, "policy", "explain", "--tool", "delete_user", "--user", "bob").stdout
    assert "  agent:  unknown::interactive::default (the user's token may name another in" in text


def test_an_expired_token_is_reported_as_a_call_would_report_it(home: Path) -> None:
    write_token(home / "token", token(exp=1000))
    assert refused(home) == [
        f"mcpguard: every call is denied with 401: the token in {home / 'token'} expired at 1970-01-01T00:16:40Z",
        "hint: get a new token; the next call uses it, without a restart",
    ]


def test_a_token_given_instead_of_its_file_is_not_repeated(home: Path) -> None:
    assert refused(home, "--token", token()) == [
        "mcpguard: --token holds a token where a path belongs",
        "hint: write the token into a file that only you can read, and name that file",
    ]


def test_an_unknown_home_folder_of_the_token_is_reported_in_one_line(home: Path) -> None:
    assert (
        refused(home, "--token", "~nosuchuser/x")[0]
        == "mcpguard: --token: the home or working folder for ~nosuchuser/x does not exist"
    )


def test_a_user_and_a_token_together_are_a_usage_error(home: Path) -> None:
    assert refused(home, "--token", "x", "--user", "bob")[0] == "mcpguard: --user and --token both name the user"


def test_a_token_is_an_error_if_users_are_not_verified(tmp_path: Path) -> None:
    assert refused(tmp_path, "--token") == [
        "mcpguard: no token names the user here",
        "hint: configure [identity.jwt] in config.toml",
    ]
