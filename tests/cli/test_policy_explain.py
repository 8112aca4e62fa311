"""`mcpguard policy explain` with a store that has counters."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.cli.command import calls, complaint, mcpguard, output, unfolded
from tests.end_to_end.host import policy, rule
from tests.provider import KeyServer, settings, token, write_token

RULES = (
    rule("100/1h", user="*", tool="echo")
    + rule("3/1h", user="alice@acme.com", tool="echo")
    + rule("50/90m", tool="echo")
    + rule("5/1m", tool="report")
    + rule("deny", tool="delete")
    + rule("2/1h", name="all agents", agent="*::interactive::*", mode="observe")
)
WHO = ("--user", "alice@acme.com", "--agent", "Claude Code::interactive::default")


@pytest.fixture(scope="module")
def used(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two calls, made once."""
    home = tmp_path_factory.mktemp("used")
    calls(home, "echo", 2, rules=RULES)
    return home


NO_ROLES = "warning: no call has roles or scopes here: configure [identity.jwt] in config.toml\n"


def explained(home: Path, *argv: str, **env: str) -> dict[str, Any]:
    done = mcpguard(home, "policy", "explain", *argv, "--json", **env)
    assert (done.returncode, done.stderr) == (0, NO_ROLES if {"--role", "--scope"} & {*argv} else "")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_in_a_pipe_it_lists_the_rules_by_status_with_the_quota_left(home: Path) -> None:
    out = output(home, "policy", "explain", *WHO, "--tool", "echo", "--server", "crm")
    assert (
        re.sub(r" 3,[56]\d\d s$", "", out)
        == f"""\
policy: {home / "policy.toml"}
call of echo
  user:   alice@acme.com
  agent:  Claude Code::interactive::default
  server: crm

Applies:
2. 3/1h  user=alice@acme.com tool=echo
    3/1h: 2 used, 1 left for user=alice@acme.com tool=echo server=crm
3. 50/90m  tool=echo
    50/90m: 2 used, 48 left for tool=echo server=crm
6. 2/1h  agent=*::interactive::* (all agents) [observe mode]
    2/1h: 2 used, 0 left for agent="Claude Code::interactive::default"

Overridden:
1. 100/1h  user=* tool=echo
    rule 2 is narrower in user

Does not match:
4. 5/1m  tool=report
    the tool is not report
5. deny  tool=delete
    the tool is not delete

Next call: would_deny by 2/1h (rule agent=*::interactive::*); retry in
"""
    )


def test_json_output_has_every_member(home: Path) -> None:
    found = explained(home, *WHO, "--tool", "echo", "--role", "a", "--role", "b", "--scope", "s")
    user, agent = ({f"{key}_source": "config", f"{key}_from": f"--{key}"} for key in ("user", "agent"))
    assert found["call"] == {"user": WHO[1], "agent": WHO[3], "tool": "echo", "roles": ["a", "b"], "scopes": ["s"]} | {
        **user, **agent, "server": "crm", "server_source": "audit",
    }  # fmt: skip
    assert found["policy"] == {"file": str(home / "policy.toml"), "starter": False, "mode": "enforce"}
    assert found["store"] == {"readable": True, "reason": None}
    assert found["next"].items() >= {"decision": "would_deny", "axis": "agent", "limit": 2, "window": "1h"}.items()
    assert 0 < found["next"]["retry_after_ms"] <= 3_600_000
    first, second, *_ = found["rules"]
    of_policy = {"number": 1, "rule": "user=* tool=echo", "limit": ["100/1h"], "count": "calls", "mode": "enforce", "line": 1}
    of_policy |= dict.fromkeys(("concurrent", "wait", "warn", "name"))
    why = {"reason": "rule 2 is narrower in user", "overridden_by": 2, "narrower_in": ["user"]}
    assert first == of_policy | why | {"status": "overridden", "limits": []}
    (left,) = second["limits"]
    counter = {"counter": "user=alice@acme.com tool=echo server=crm", "count": 2, "remaining": 1, "retry_after_ms": 0}
    assert left.items() >= ({"limit": 3, "window": "1h"} | counter).items()
    assert [one["status"] for one in found["rules"]] == ["overridden", "applies", "applies", "no_match", "no_match", "applies"]


def test_it_says_that_a_tool_is_closed_or_not_limited(home: Path) -> None:
    policy(home, rule("deny", tool="delete") + rule("unlimited", tool="free"))
    closed, free = (output(home, "policy", "explain", "--tool", tool) for tool in ("delete", "free"))
    assert "    denies the call\n" in closed
    assert closed.endswith("Next call: denied by the rule tool=delete\n")
    assert "    counts nothing\n" in free
    assert free.endswith("Next call: allowed; no rule limits it\n")


OPTIONS = [*(("--" + key, "a*") for key in "tool user server role scope session".split()), ("--agent", "*::api::x")]


@pytest.mark.parametrize(("option", "pattern"), OPTIONS)
def test_a_pattern_and_an_empty_name_are_refused(home: Path, option: str, pattern: str) -> None:
    argv = ("policy", "explain", "--tool", "echo", option)
    assert complaint(home, *argv, pattern).endswith(" is a pattern\nhint: give an exact name: only rules have patterns\n")
    hint = {"--tool": "give a name"}.get(option, "give a name, or leave the option out")
    assert complaint(home, *argv, "") == f"mcpguard: {option} is empty\nhint: {hint}\n"


def test_rules_are_explained_even_if_the_store_cannot_be_read(home: Path) -> None:
    (home / "mcpguard.db").write_bytes(b"something else, and longer than a header" * 10)
    out = output(home, "policy", "explain", *WHO, "--tool", "echo")
    found = explained(home, *WHO, "--tool", "echo")
    assert "    rule 2 is narrower in user\n" in out
    assert " used, " not in out
    assert out.endswith("Next call: unknown, because the store cannot be read\n")
    assert (found["store"]["readable"], found["next"]) == (False, None)
    assert found["store"]["reason"]
    assert {left["count"] for one in found["rules"] for left in one["limits"]} == {None}


ON_CRM = (*WHO, "--tool", "echo", "--server", "crm")


def test_caps_cost_errors_and_arguments_are_explained(tmp_path: Path) -> None:
    counting = rule("9/1h", user="*", count="cost") + rule("3/1m", tool="echo", count="errors")
    policy(tmp_path, rule("50/1h", tool="echo", concurrent=2) + counting + '[[cost]]\ntool = "echo"\ncost = 10\n')
    calls(tmp_path, "plain", 1)
    out = unfolded(output(tmp_path, "policy", "explain", *ON_CRM))
    for line in (
        "1. 50/1h 2-in-flight  tool=echo\n",
        "    50/1h: 0 used, 50 left for tool=echo server=crm\n    2-in-flight: 0 in flight, 2 left for tool=echo server=crm\n",
        "9-units/1h: ",
        "the call costs 10, more than the whole limit",
        "3-errors/1m: 0 used, 3 left for tool=echo server=crm\n",
        "Next call: rate_limited by 9-units/1h (rule user=*); waiting does not help\n",
    ):
        assert unfolded(line) in out
    found = explained(tmp_path, *ON_CRM)
    assert (found["next"]["reason"], found["next"]["counts"], found["next"]["cost"]) == ("too_costly", "cost", 10)
    limits = [limit for one in found["rules"] for limit in one["limits"]]
    left = [(one["limit"], one.get("counts"), one.get("cost"), one["remaining"]) for one in limits]
    assert left == [(50, None, None, 50), (2, "concurrent", None, 2), (9, "cost", 10, 8), (3, "errors", None, 3)]


def test_an_overridden_part_of_a_rule_lists_no_limit_of_the_other_part(tmp_path: Path) -> None:
    policy(tmp_path, rule("1/1m", tool="*", concurrent=2) + rule("unlimited", tool="echo"))
    found = explained(tmp_path, *ON_CRM)
    rules = [(one["number"], one["status"], [left["limit"] for left in one["limits"]]) for one in found["rules"]]
    assert rules == [(1, "overridden", []), (1, "applies", [2]), (2, "applies", [])]


def test_a_call_without_room_in_another_limit_is_refused_whatever_the_arguments_are(tmp_path: Path) -> None:
    policy(tmp_path, rule("5/10m", per=["arguments"]) + rule("2/1h", tool="echo"))
    argv = ("policy", "explain", *ON_CRM)
    calls(tmp_path, "echo", 1)
    assert "Next call: it depends on the arguments;" in output(tmp_path, *argv)
    calls(tmp_path, "echo", 1)
    last = "Next call: no room, whatever the arguments are; to see for how long, give them with --arguments"
    assert last in unfolded(output(tmp_path, *argv))
    assert "Next call: rate_limited by 2/1h (rule tool=echo);" in output(tmp_path, *argv, "--arguments", "{}")


def test_a_rule_that_counts_arguments_needs_them(tmp_path: Path) -> None:
    calls(tmp_path, "plain", 1, rules=rule("5/10m", tool="echo", per=["arguments"]))
    argv = ("policy", "explain", *ON_CRM)
    out = output(tmp_path, *argv)
    assert "5/10m: what is left depends on the arguments; give them with --arguments (tool=echo" in unfolded(out)
    assert out.endswith("Next call: it depends on the arguments; give them with --arguments\n")
    found = explained(tmp_path, *ON_CRM)
    assert (found["rules"][0]["limits"][0]["count"], found["next"]) == (None, None)
    out = output(tmp_path, *argv, "--arguments", '{"q": 1}')
    assert "5/10m: 0 used, 5 left for tool=echo server=crm arguments=" in out
    assert "arguments=?" not in out
    for text in ("", "[]", "7", "{", '"x"', '{"q": NaN}', '{"q": [-Infinity]}'):
        assert complaint(tmp_path, *argv, "--arguments", text).startswith("mcpguard: --arguments is not a JSON object\n")


def test_a_name_that_is_like_one_in_the_log_is_asked_about(home: Path) -> None:
    who = ("--user", "alic@acme.com", "--agent", "Claud Code::interactive::default")
    said = mcpguard(home, "policy", "explain", *who, "--tool", "echos").stderr.splitlines()
    assert said[0].startswith("warning: none of the newest calls in the audit log has the ")
    names = ("alice@acme.com", "Claude Code", "echo")
    assert {line.rpartition("; ")[2] for line in said} == {f"did you mean {name}?" for name in names}


# Who a token names

EXPLAIN = ("policy", "explain", "--tool", "delete_user")


@pytest.fixture
def verified(tmp_path: Path, keys: KeyServer) -> Path:
    """A tool that is closed but for those with a scope, and the token of one of them."""
    file = settings(tmp_path, keys.url, agent_claim="agent")
    write_token(file, token(scope="admin.users", agent="Claude Code::api::nightly"))
    policy(tmp_path, rule("deny", tool="delete_user") + rule("20/1h", tool="delete_user", scope="admin.users"))
    return tmp_path


def test_user_agent_and_scopes_come_from_the_token_and_that_of_another_user_may_name_the_agent(verified: Path) -> None:
    found = json.loads(output(verified, *EXPLAIN, "--json", "--token"))
    call = {"user": "alice", "user_source": "jwt", "agent": "Claude Code::api::nightly", "agent_source": "jwt"}
    assert found["call"].items() >= call.items()
    assert found["next"]["decision"] == "allowed"
    agent = "  agent:  unknown::interactive::default (the user's token may name another in"
    assert agent in mcpguard(verified, *EXPLAIN, "--user", "bob").stdout


@pytest.mark.posix  # Windows makes up a folder for each name
def test_an_unknown_home_folder_of_the_token_is_reported_in_one_line(verified: Path) -> None:
    said = "mcpguard: --token: the home or working folder for ~nosuchuser/x does not exist\n"
    assert complaint(verified, *EXPLAIN, "--token", "~nosuchuser/x").startswith(said)
