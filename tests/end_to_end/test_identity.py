import getpass
import json
from pathlib import Path
from typing import Any

import pytest

from mcpguard.text.printing import quoted
from tests import provider
from tests.cli.command import mcpguard
from tests.provider import KeyServer, settings, token, write_token
from tests.redis_servers import running

from .host import DEADLINE_S, Message, call, policy, request, rule, script, serving

WHO = ("user", "user_source", "agent", "agent_source", "server")
ACCOUNT = getpass.getuser()
SERVER = "obedient"


def initialize(name: str) -> Message:
    params = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": name, "version": "1"}}
    return request("initialize", "initialize", params)


def session(home: Path, *messages: Message, **how: Any) -> list[Message]:
    """The audit of a session in which these are sent."""
    with serving(home, **how) as host:
        for message in messages:
            host.send(message)
            host.answer(message["id"])
    return host.audit()


@pytest.mark.parametrize(
    ("options", "env", "config", "expected"),
    [
        ([], {}, "", (ACCOUNT, "os", "one::interactive::default", "clientInfo", SERVER)),
        (
            ["--user", "alice", "--server", "crm", "--agent", "E::subagent::Explore"],
            {"MCPGUARD_USER": "bob", "MCPGUARD_SERVER": "erp"},
            'user = "carol"',
            ("alice", "config", "E::subagent::Explore", "config", "crm"),
        ),
        (
            [],
            {},
            'user = " ünï::cødé \\t"\ntrust_client_info = false',
            (" ünï::cødé \t", "config", "unknown::interactive::default", "default", SERVER),
        ),
        ([], {}, "trust_meta = true", (ACCOUNT, "os", "x::api::y", "meta", SERVER)),
    ],
    ids=["by default", "by options", "in the file", "by calls"],
)
def test_who_calls_is_configured_and_its_source_is_in_the_audit(
    tmp_path: Path, options: list[str], env: dict[str, str], config: str, expected: tuple[str, ...]
) -> None:
    (tmp_path / "config.toml").write_text(f"[identity]\n{config}\n", "utf-8")
    called = call(1, "search", _meta={"mcpguard/agent": "x::api::y"})
    (row,) = session(tmp_path, initialize("one"), called, options=options, env=env)
    assert tuple(row[key] for key in WHO) == expected


def test_the_guards_secrets_are_not_the_servers_nor_in_any_output_and_all_else_is_passed_on(tmp_path: Path) -> None:
    with running(tmp_path / "redis", "--requirepass", "pa55word") as server:
        secrets = {"MCPGUARD_TOKEN": "s3cret", "MCPGUARD_STORE": server.url, "MCPGUARD_STORE_PASSWORD": "pa55word"}
        with serving(tmp_path, env={**secrets, "SERVERS_OWN": "thing"}) as host:
            text = host.call(1, "variables")["result"]["content"][0]["text"]
        told = mcpguard(tmp_path, "audit", "tail", "--json", **secrets).stdout
        assert '"tool": "variables"' in told or '"tool":"variables"' in told
        wrong = mcpguard(tmp_path, "audit", "tail", **secrets | {"MCPGUARD_STORE_PASSWORD": "wr0ng"})
        assert wrong.returncode == 69
        assert wrong.stderr.startswith(f"mcpguard: {server.url} refuses: ")
    variables = json.loads(text)
    assert variables["SERVERS_OWN"] == "thing"
    assert not secrets.keys() & variables.keys()
    for secret in ("s3cret", "pa55word", "wr0ng"):
        assert secret not in host.err + text + told + wrong.stderr
    assert f"store={server.url}" in host.err
    assert not (tmp_path / "mcpguard.db").exists()


@pytest.mark.parametrize(("agent", "times"), [("Codex::batch::x", 1), ("Codex::background::x", 0)])
def test_a_tier_that_no_rule_matches_is_said_on_one_line_by_all_that_tell_of_it(tmp_path: Path, agent: str, times: int) -> None:
    said = "no rule matches agents of the tier batch, so nothing limits their calls; check the spelling"
    with serving(tmp_path, options=["--agent", agent]) as host:
        host.call(1, "search")
    assert host.err.splitlines().count(f"mcpguard: {said}") == times
    assert mcpguard(tmp_path, "whoami", "--agent", agent).stdout.count(f"warning: {said}\n") == times
    explained = mcpguard(tmp_path, "policy", "explain", "--tool", "x", "--agent", agent)
    assert explained.stderr.count(f"warning: {said}\n") == times
    assert mcpguard(tmp_path, "policy", "check", MCPGUARD_AGENT=agent).stdout.count(f"warning: {said}\n") == times


ODD = {"user": 'al ice"\x1b[2J\u202e', "server": "客户 服务", "agent": "a\\x1b::batch::\U0001f469\u200d"}


def test_odd_names_stand_in_the_first_line_in_quotation_marks_and_without_control_characters(tmp_path: Path) -> None:
    options = [word for key, name in ODD.items() for word in (f"--{key}", name)]
    with serving(tmp_path, options=options) as host:
        host.call(1, "search")
    first = next(line for line in host.err.splitlines() if line.startswith("mcpguard: "))
    assert first.isprintable()
    assert r' server="客户 服务" user="al ice\"\x1b[2J\u202e" ' in first
    assert r' agent="a\\x1b::batch::👩\u200d" policy=the starter policy (4 rules) store=' in first


OBEDIENT = script("obedient")
PATIENT = {"mcpguard.identity.keys.FETCH_S": DEADLINE_S}
"""Waits for keys as long as a busy machine takes to send them."""


def test_a_verified_user_is_limited_and_on_record_with_all_that_the_token_says(tmp_path: Path, keys: KeyServer) -> None:
    settings(tmp_path, keys.url, roles_claim="realm_access.roles", agent_claim="agent")
    in_the_environment = token(
        email="alice@acme.com",
        email_verified=True,
        scope="crm.read crm.write",
        realm_access={"roles": ["dev", "ops"]},
        agent="Batch::background::nightly",
        act={"sub": "crm-agent", "act": {"sub": "planner"}},
    )
    policy(tmp_path, rule("1/1h", user="*", role="dev", scope="crm.read") + rule("9/1h", user="*", role="boss"))
    with serving(tmp_path, tuned=PATIENT, env={"MCPGUARD_TOKEN": in_the_environment}) as host:
        assert "result" in host.call(1, "search")
        assert host.call(2, "search")["error"]["data"]["user"] == "alice"
    assert [row["decision"] for row in host.audit()] == ["allowed", "rate_limited"]
    row = host.audit()[0]
    found = [row.get(key) for key in ("user", "user_source", "email", "roles")]
    assert found == ["alice", "jwt", "alice@acme.com", ["dev", "ops"]]
    who = ("Batch::background::nightly", "jwt", ["planner", "crm-agent"])
    assert tuple(row.get(key) for key in ("agent", "agent_source", "act")) == who


def test_without_a_token_every_call_is_denied_and_all_else_passes_until_there_is_one(tmp_path: Path, keys: KeyServer) -> None:
    file = settings(tmp_path, keys.url)
    with serving(tmp_path, tuned=PATIENT) as host:
        assert "result" in host.ask("tools", "tools/list")
        error = host.call(1, "search")["error"]
        assert error["code"] == 401
        assert error["message"].startswith(f"Tool search was not called: there is no token: {file} does not exist. ")
        assert "MCPGUARD_TOKEN" in error["message"]
        write_token(file, token())
        assert "result" in host.call(2, "search")
    first, second = host.audit()
    assert "user=" + quoted(f"unauthenticated: there is no token: {file} does not exist") in host.err
    assert "unauthenticated axis=user" in host.err
    assert "user alice, verified" in host.err
    assert (first["decision"], first["axis"], first["tool"]) == ("unauthenticated", "user", "search")
    assert not {"user", "user_source", "email", "roles", "act"} & first.keys()
    assert (second["decision"], second["user"]) == ("allowed", "alice")


@pytest.mark.parametrize("good", [True, False])
def test_no_part_of_a_token_is_in_the_audit_on_stderr_on_disk_or_in_an_answer(
    tmp_path: Path, keys: KeyServer, good: bool
) -> None:
    file = settings(tmp_path / "home", keys.url)
    secret = token() if good else token(number=7, headers={"kid": "RS256-0"}, sub="mallory")
    write_token(file, secret)
    with serving(tmp_path / "home", tuned=PATIENT) as host:
        host.send(call(1, "search"))
        answers = json.dumps(host.answer(1))
        assert ("result" in answers) == good
    answers += host.err
    file.unlink()
    everything = answers.encode() + b"".join(path.read_bytes() for path in (tmp_path / "home").iterdir())
    for piece in secret.split("."):
        assert piece.encode() not in everything
    assert b"mallory" not in everything


def test_with_keys_in_a_file_the_first_line_names_the_user_and_no_http_client_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "keys.json").write_bytes(provider.key_set(provider.jwk()))
    write_token(settings(tmp_path, "keys.json"), token())
    with serving(tmp_path, env={"PYTHONPROFILEIMPORTTIME": "1"}) as host:
        assert "result" in host.call(1, "search")
    loaded = {line.rpartition("|")[2].strip() for line in host.err.splitlines()}
    (first,) = (line for line in host.err.splitlines() if " mode=" in line)
    assert " user=alice agent=" in first
    assert "jwt" in loaded
    assert "httpx2" not in loaded
