"""Verified users: real wrappers, real keys, and a real server of keys."""

import json
from pathlib import Path

import pytest

from mcpguard.text.printing import quoted
from tests import provider
from tests.provider import KeyServer, settings, token, write_token

from .host import DEADLINE_S, call, policy, rule, script, serving

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
