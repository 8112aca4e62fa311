import getpass
import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli.command import mcpguard

from .host import Host, Message, call, policy, request, rule, script

WHO = ("user", "user_source", "agent", "agent_source", "server")
ACCOUNT = getpass.getuser()
SERVER = "obedient"


def initialize(name: str) -> Message:
    params = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": name, "version": "1"}}
    return request("initialize", "initialize", params)


def session(home: Path, *messages: Message, **how: Any) -> list[Message]:
    """The audit of a session in which these are sent."""
    with Host(home, *script("obedient"), **how) as host:
        for message in messages:
            host.send(message)
            host.answer(message["id"])
        assert host.end() == 0
        return host.audit()


@pytest.mark.parametrize(
    ("options", "env", "config", "expected"),
    [
        ([], {}, "", (ACCOUNT, "os", "unknown::interactive::default", "default", SERVER)),
        (["--user", "alice"], {}, "", ("alice", "config", "unknown::interactive::default", "default", SERVER)),
        ([], {"MCPGUARD_USER": "bob"}, "", ("bob", "config", "unknown::interactive::default", "default", SERVER)),
        ([], {}, 'user = "carol"', ("carol", "config", "unknown::interactive::default", "default", SERVER)),
        (
            ["--user", "alice"],
            {"MCPGUARD_USER": "bob"},
            'user = "carol"',
            ("alice", "config", "unknown::interactive::default", "default", SERVER),
        ),
        (
            [],
            {"MCPGUARD_USER": "bob", "MCPGUARD_AGENT": "E::api::e"},
            'user = "carol"\nagent = "C::api::c"',
            ("bob", "config", "E::api::e", "config", SERVER),
        ),
        (["--agent", "A::background::b"], {}, "", (ACCOUNT, "os", "A::background::b", "config", SERVER)),
        (["--agent", "::subagent::Explore"], {}, "", (ACCOUNT, "os", "unknown::subagent::Explore", "config", SERVER)),
        ([], {}, 'agent = "C::api::c"', (ACCOUNT, "os", "C::api::c", "config", SERVER)),
        (["--server", "crm"], {}, "", (ACCOUNT, "os", "unknown::interactive::default", "default", "crm")),
        ([], {"MCPGUARD_SERVER": "erp"}, "", (ACCOUNT, "os", "unknown::interactive::default", "default", "erp")),
        (
            ["--server", "crm"],
            {"MCPGUARD_SERVER": "erp"},
            "",
            (ACCOUNT, "os", "unknown::interactive::default", "default", "crm"),
        ),
        (["--user", " ünï::cødé \t"], {}, "", (" ünï::cødé \t", "config", "unknown::interactive::default", "default", SERVER)),
    ],
    ids=repr,
)
def test_who_calls_is_configured_and_its_source_is_in_the_audit(
    tmp_path: Path, options: list[str], env: dict[str, str], config: str, expected: tuple[str, ...]
) -> None:
    (tmp_path / "config.toml").write_text(f"[identity]\n{config}\n")
    rows = session(tmp_path, call(1, "search"), options=options, env=env)
    assert [tuple(row[key] for key in WHO) for row in rows] == [expected]


@pytest.mark.parametrize("dashes", [True, False])
def test_the_command_is_found_with_and_without_dashes(tmp_path: Path, dashes: bool) -> None:
    rows = session(tmp_path, call(1, "search"), options=["--user", "alice"], dashes=dashes)
    assert [(row["user"], row["server"]) for row in rows] == [("alice", SERVER)]


def test_options_of_the_server_are_the_servers(tmp_path: Path) -> None:
    with Host(tmp_path, "echo", "--user", "x", "--", "-h", dashes=False) as host:
        assert host.rest() == b"--user x -- -h\n"
        assert host.wait() == 0


@pytest.mark.parametrize(
    ("name", "agent"),
    [("claude-code", "Claude Code::interactive::default"), ("my-own", "my-own::interactive::default")],
)
def test_a_client_that_introduces_itself_fills_the_first_part_of_the_agent(tmp_path: Path, name: str, agent: str) -> None:
    rows = session(tmp_path, initialize(name), call(1, "search"))
    assert [(row["agent"], row["agent_source"]) for row in rows] == [(agent, "clientInfo")]


@pytest.mark.parametrize("name", ["evil::subagent::x", "::subagent", "a:", ":", "\\", "*"])
def test_a_client_cannot_name_itself_into_another_tier(tmp_path: Path, name: str) -> None:
    (row,) = session(tmp_path, initialize(name), call(1, "search"))
    assert row["agent"].split("::")[1:] == ["interactive", "default"]


def test_a_call_may_be_the_first_frame_and_say_itself_who_the_client_is(tmp_path: Path) -> None:
    meta = {
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientCapabilities": {},
        "io.modelcontextprotocol/clientInfo": {"name": "cursor-vscode", "version": "1"},
        "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    }
    (row,) = session(tmp_path, call(1, "search", _meta=meta))
    assert (row["agent"], row["agent_source"]) == ("Cursor::interactive::default", "clientInfo")
    assert row["trace_id"] == "0af7651916cd43dd8448eb211c80319c"


def test_each_call_of_one_connection_may_come_from_another_client(tmp_path: Path) -> None:
    calls = [call(name, "search", _meta={"io.modelcontextprotocol/clientInfo": {"name": name}}) for name in ("one", "two")]
    rows = session(tmp_path, initialize("three"), *calls, call("none", "search"))
    assert [row["agent"].split("::")[0] for row in rows] == ["one", "two", "three"]


def test_a_client_cannot_change_a_part_that_is_configured(tmp_path: Path) -> None:
    meta = {"io.modelcontextprotocol/clientInfo": {"name": "two"}, "mcpguard/agent": "x::api::y"}
    rows = session(tmp_path, initialize("one"), call(1, "search", _meta=meta), options=["--agent", "Mine::background::"])
    assert [(row["agent"], row["agent_source"]) for row in rows] == [("Mine::background::default", "config")]


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ("trust_client_info = false", ("unknown::interactive::default", "default")),
        ("trust_meta = true", ("x::api::y", "meta")),
        ("", ("one::interactive::default", "clientInfo")),
    ],
)
def test_whether_a_client_is_believed_is_configured(tmp_path: Path, config: str, expected: tuple[str, str]) -> None:
    (tmp_path / "config.toml").write_text(f"[identity]\n{config}\n")
    rows = session(tmp_path, initialize("one"), call(1, "search", _meta={"mcpguard/agent": "x::api::y"}))
    assert [(row["agent"], row["agent_source"]) for row in rows] == [expected]


def test_a_limit_by_agent_is_met_by_the_client_it_names_alone(tmp_path: Path) -> None:
    policy(tmp_path, rule("1/1h", user="*", agent="Claude Code::*::*"))
    with Host(tmp_path, *script("obedient"), options=["--user", "alice"]) as host:
        for name, denied in (("claude-code", True), ("other", False)):
            host.send(initialize(name))
            host.answer("initialize")
            assert "result" in host.call(f"{name} 1", "search")
            answer = host.call(f"{name} 2", "search")
            assert ("error" in answer) == denied
            if denied:
                assert answer["error"]["data"]["axis"] == "agent"
        assert host.end() == 0


def test_a_denial_can_be_a_result_that_every_host_shows(tmp_path: Path) -> None:
    policy(tmp_path, rule("deny", tool="search"))
    with Host(tmp_path, *script("obedient"), options=["--denials", "result"]) as host:
        result = host.call(1, "search")["result"]
        assert result["isError"] is True
        assert result["resultType"] == "complete"
        assert result["content"][0]["text"].startswith("Tool search is denied by policy")
        assert result["_meta"]["mcpguard/denial"]["reason"] == "denied"
        assert host.call(2, "search", task={"ttl": 1000})["error"]["code"] == 403
        assert host.end() == 0


def test_the_guards_secrets_are_not_the_servers_and_all_else_is(tmp_path: Path) -> None:
    store = f"sqlite://{tmp_path}/other.db"
    env = {"MCPGUARD_TOKEN": "s3cret", "MCPGUARD_STORE": store, "SERVERS_OWN": "thing"}
    with Host(tmp_path, *script("obedient"), env=env) as host:
        text = host.call(1, "variables")["result"]["content"][0]["text"]
        assert host.end() == 0
        assert "s3cret" not in host.err
    variables = json.loads(text)
    assert variables["SERVERS_OWN"] == "thing"
    assert "s3cret" not in text
    assert not {"MCPGUARD_TOKEN", "MCPGUARD_STORE"} & variables.keys()
    assert (tmp_path / "other.db").exists()
    assert not (tmp_path / "mcpguard.db").exists()


def test_files_are_private_whatever_the_umask(tmp_path: Path) -> None:
    home = tmp_path / "not" / "yet"
    session(tmp_path, call(1, "search"), options=["--store", f"sqlite://{home}/mcpguard.db"])
    assert [folder.stat().st_mode & 0o777 for folder in (home, home.parent)] == [0o700] * 2
    assert {file.stat().st_mode & 0o777 for file in home.iterdir()} == {0o600}


def test_a_tier_that_no_rule_matches_is_said_on_one_line_by_all_that_tell_of_it(tmp_path: Path) -> None:
    said = "no rule matches agents of the tier batch, so nothing limits their calls; check the spelling"
    for agent, times in (("Codex::batch::x", 1), ("Codex::background::x", 0), ("Codex::::", 0)):
        with Host(tmp_path, *script("obedient"), options=["--agent", agent]) as host:
            host.call(1, "search")
            assert host.end() == 0
        assert host.err.splitlines().count(f"mcpguard: {said}") == times
        assert mcpguard(tmp_path, "whoami", "--agent", agent).stdout.count(f"warning: {said}\n") == times
        explained = mcpguard(tmp_path, "policy", "explain", "--tool", "x", "--agent", agent)
        assert explained.stderr.count(f"warning: {said}\n") == times
        checked = mcpguard(tmp_path, "policy", "check", MCPGUARD_AGENT=agent)
        assert checked.returncode == 0
        assert checked.stdout.count(f"warning: {said}\n") == times
    policy(tmp_path, rule("5/1h", user="*"))
    with Host(tmp_path, *script("obedient"), options=["--agent", "Codex::batch::x"]) as host:
        assert host.end() == 0
    assert said not in host.err
    assert "OK" in mcpguard(tmp_path, "policy", "check", MCPGUARD_AGENT="not::an::agent::at all").stdout


WOMAN = "\U0001f469"
ODD = {"user": 'al ice"\x1b[2J\u202e', "server": "客户 服务", "agent": "a\\x1b::batch::\U0001f469\u200d"}


def test_odd_names_stand_in_the_first_line_in_quotation_marks_and_without_control_characters(tmp_path: Path) -> None:
    options = [word for key, name in ODD.items() for word in (f"--{key}", name)]
    with Host(tmp_path, *script("obedient"), options=options) as host:
        host.call(1, "search")
        assert host.end() == 0
    first = next(line for line in host.err.splitlines() if line.startswith("mcpguard: "))
    assert first.isprintable()
    assert r' server="客户 服务" user="al ice\"\x1b[2J\u202e" ' in first
    assert rf' agent="a\\x1b::batch::{WOMAN}\u200d" policy=the starter policy (4 rules) store=' in first


def test_very_long_names_push_nothing_else_out_of_the_first_line(tmp_path: Path) -> None:
    with Host(tmp_path, *script("obedient"), options=["--user", "x" * 5000, "--server", "客" * 3000]) as host:
        assert host.end() == 0
    assert f"(4 rules) store={tmp_path}/mcpguard.db\n" in host.err
