import getpass
import json
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len

from tests.cli.command import mcpguard, on_terminal
from tests.provider import AUDIENCE, ISSUER, KeyServer, settings, token, write_token


def whoami(home: Path, *argv: str, status: int = 0, **env: Any) -> dict[str, Any]:
    done = mcpguard(home, "whoami", "--json", *argv, **env)
    assert done.returncode == status, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    return report


@pytest.mark.parametrize(
    ("argv", "env", "config", "user", "place"),
    [
        (["--user", "alice"], {"MCPGUARD_USER": "bob"}, '[identity]\nuser = "carol"', "alice", "--user"),
        ([], {"MCPGUARD_USER": "bob"}, '[identity]\nuser = "carol"', "bob", "MCPGUARD_USER"),
        ([], {}, '[identity]\nuser = "carol"', "carol", "config.toml"),
        ([], {}, "", getpass.getuser(), None),
    ],
)
def test_without_a_token_it_shows_the_configured_user_and_where_it_is_set(
    tmp_path: Path, argv: list[str], env: dict[str, Any], config: str, user: str, place: str | None
) -> None:
    (tmp_path / "config.toml").write_text(config, "utf-8")
    report = whoami(tmp_path, *argv, **env)
    assert (report["user"], report.get("user_from"), report["problems"]) == (user, place, [])
    assert report["user_source"] == ("config" if place else "os")


def test_it_takes_the_arguments_of_run(tmp_path: Path) -> None:
    entry = ["--agent", "Mine::api::", "--observe", "--denials", "result", "--", "npx", "-y", "@acme/crm-server"]
    report = whoami(tmp_path, *entry)
    assert (report["agent"], report["agent_source"], report["agent_from"]) == ("Mine::api::default", "config", "--agent")
    assert report["server"] == "crm-server"
    assert whoami(tmp_path, MCPGUARD_SERVER="erp")["server"] == "erp"
    assert "server" not in whoami(tmp_path)


@pytest.mark.parametrize("before", [["run"], ["/opt/mcpguard", "run"]])
def test_the_arguments_of_a_clients_entry_can_be_pasted_as_they_are(tmp_path: Path, before: list[str]) -> None:
    entry = [*before, "--server", "crm", "--user", "alice@acme.com", "--", "npx", "-y", "@acme/crm-server"]
    assert whoami(tmp_path, *entry).items() >= {"user": "alice@acme.com", "user_from": "--user", "server": "crm"}.items()
    assert whoami(tmp_path, "--user", "bob@acme.com", *entry)["user"] == "bob@acme.com"


def test_it_warns_of_a_token_that_is_not_used(tmp_path: Path) -> None:
    report = whoami(tmp_path, MCPGUARD_TOKEN="s3cret")
    assert (report["user_source"], len(report["warnings"])) == ("os", 1)
    assert "s3cret" not in json.dumps(report)
    assert whoami(tmp_path)["warnings"] == []


def test_it_shows_a_verified_user_and_the_claims_but_not_the_token(tmp_path: Path, keys: KeyServer) -> None:
    file = settings(tmp_path, keys.url, roles_claim="realm_access.roles", agent_claim="agent")
    secret = token(
        email="alice@acme.com", scope="read write", realm_access={"roles": ["dev"]}, agent="nightly",
        act={"sub": "b", "act": {"sub": "a"}},
    )  # fmt: skip
    write_token(file, secret)
    done = mcpguard(tmp_path, "whoami", "--json")
    assert done.returncode == 0
    assert not [piece for piece in secret.split(".") if piece in done.stdout + done.stderr]
    report = json.loads(done.stdout)
    assert report.pop("token").pop("claims")["sub"] == "alice"
    assert 0 <= report["keys"].pop("age_seconds") < 60
    assert report["keys"].pop("fetched").endswith("Z")
    who = {"user": "alice", "user_source": "jwt", "agent": "unknown::interactive::nightly", "agent_source": "jwt"}
    claims = {"email": "alice@acme.com", "roles": ["dev"], "scopes": ["read", "write"], "act": ["a", "b"]}
    assert report == who | claims | {"keys": {"source": keys.url}, "problems": [], "warnings": []}


@pytest.mark.posix
def test_every_problem_is_shown_and_the_status_is_1(tmp_path: Path, keys: KeyServer) -> None:
    file = settings(tmp_path, keys.url)
    file.write_text(token(number=1, headers={"kid": "RS256-0"}, aud="other", exp=1, iss="x"), "utf-8")
    file.chmod(0o644)
    report = whoami(tmp_path, status=1)
    assert not {"user", "user_source"} & report.keys()
    assert [problem["message"].removeprefix(f"the token in {file} ") for problem in report["problems"]] == [
        f"has a signature that is not {ISSUER}'s",
        f"is not from the issuer {ISSUER}",
        f"is not for the audience {AUDIENCE}",
        "expired at 1970-01-01T00:00:01Z",
    ]
    assert all(problem["hint"] for problem in report["problems"])
    assert (report["token"]["verified"], report["token"]["expires"]) == (False, "1970-01-01T00:00:01Z")
    assert [warning.partition(" (")[0] for warning in report["warnings"]] == [f"others can read the token in {file}"]


def test_keys_that_cannot_be_fetched_are_reported(tmp_path: Path, keys: KeyServer) -> None:
    write_token(settings(tmp_path, keys.url), token())
    keys.status = 500
    report = whoami(tmp_path, status=1)
    assert report["keys"] == {"source": keys.url, "problem": "it answers with HTTP status 500"}
    assert report["problems"][0]["message"] == f"keys cannot be fetched from {keys.url}: it answers with HTTP status 500"


def test_without_a_token_it_says_where_it_looks_for_one(tmp_path: Path, keys: KeyServer) -> None:
    file = settings(tmp_path, keys.url)
    done = mcpguard(tmp_path, "whoami")
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert lines[0] == "user: nobody: calls are denied with 401"
    assert f"token: {file}" in lines
    assert any(line.startswith(f"problem: there is no token: {file} does not exist. hint: log in") for line in lines)
    env = mcpguard(tmp_path, "whoami", MCPGUARD_TOKEN=token())
    assert (env.returncode, env.stdout.splitlines()[0]) == (0, "user: alice (the token)")


def test_the_table_fits_eighty_columns_and_has_no_control_characters(tmp_path: Path, keys: KeyServer) -> None:
    file = settings(tmp_path, keys.url)
    said: dict[str, Any] = {"note": "\x1b[2J" + "long " * 50, "https://acme.com/a/very/long/claim": "客户" * 60}
    write_token(file, token(aud="other", **said))
    status, shown = on_terminal(tmp_path, "whoami", NO_COLOR="1")
    assert status == 1
    assert "\x1b" not in shown
    assert "\\x1b[2J" in shown
    assert max(map(cell_len, shown.splitlines())) <= 79
    assert "is not for the audience" in " ".join(shown.split())
    assert "\x1b[31m" in on_terminal(tmp_path, "whoami")[1]
