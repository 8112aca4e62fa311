import json
import sys
import time
from pathlib import Path

import pytest

import mcpguard
from mcpguard import __version__
from mcpguard.clients.launcher import PROGRAM
from mcpguard.doctor import Check
from mcpguard.doctor.checkup import found_on
from tests import provider
from tests.alerts.webhook import webhook
from tests.cli.command import calls
from tests.clients.installations import impostor, installed
from tests.doctor.checks import doctor, of, only
from tests.end_to_end.host import policy, rule
from tests.links import follows_links
from tests.provider import ISSUER, KeyServer, settings, token, write_token


def test_a_new_installation_has_nothing_to_mend(tmp_path: Path) -> None:
    checks = doctor(tmp_path)
    assert [one.check for one in checks] == ["config", "policy", "store", "space", "identity"]
    told = f"no file at {tmp_path / 'config.toml'}: the defaults apply; variables: MCPGUARD_HOME"
    assert only(checks, "config").detail == told
    assert only(checks, "policy").detail == f"starter policy, no file at {tmp_path / 'policy.toml'}: 4 rules"
    assert list(tmp_path.iterdir()) == []


def test_the_settings_file_and_the_names_of_variables_are_told(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text('[identity]\nuser = "alice"\n', "utf-8")
    checks = doctor(tmp_path, MCPGUARD_AGENT="::api::nightly", MCPGUARD_STORE_PASSWORD="s3cret")
    names = "MCPGUARD_AGENT MCPGUARD_HOME MCPGUARD_STORE_PASSWORD"
    assert only(checks, "config").detail == f"{tmp_path / 'config.toml'}; variables: {names}"
    assert only(checks, "identity").detail == ("user alice (config.toml), agent unknown::api::nightly (MCPGUARD_AGENT)")


@pytest.mark.parametrize("text", ["quiet = 1", "[", '[store]\nurl = "s3cret"', '[store]\nurl = "ftp://u:s3cret@host"'])
def test_settings_that_are_not_valid_end_the_checks_that_need_them(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.toml").write_text(text, "utf-8")
    (config,) = doctor(tmp_path, status=1)
    assert (config.check, config.ok) == ("config", False)
    assert "s3cret" not in str(config)


def test_a_password_on_the_command_line_is_advised_against_and_not_shown(tmp_path: Path) -> None:
    checks = doctor(tmp_path, "--store", "redis://alice:s3cret@127.0.0.1:1/0", status=1)
    assert of(checks, "config")[1].is_advice
    assert only(checks, "store").detail.startswith("redis://127.0.0.1:1/0 does not answer: ")
    assert "s3cret" not in str(checks)


@pytest.mark.parametrize(("url", "advised"), [("redis://:s3cret@0.0.0.0:1/0", True), ("rediss://:s3cret@0.0.0.0:1/0", False)])
def test_a_password_that_the_network_could_read_is_advised_against(tmp_path: Path, url: str, advised: bool) -> None:
    checks = of(doctor(tmp_path, status=1, MCPGUARD_STORE=url), "store")
    assert ("redis://0.0.0.0:1/0 receives the password unencrypted" in [one.detail for one in checks]) == advised
    assert "s3cret" not in str(checks)


@pytest.mark.posix
def test_a_file_that_others_may_change_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.toml").touch()
    (tmp_path / "config.toml").chmod(0o666)
    config, warning = of(doctor(tmp_path), "config")
    assert not config.is_advice
    assert warning.is_advice
    assert warning.detail.startswith(f"other accounts may change {tmp_path / 'config.toml'}: ")


def test_each_way_to_notify_is_told_without_its_secret_and_a_missing_program_is_a_failure(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(
        f'[[notify]]\ncommand = [{json.dumps(sys.executable)}, "-V"]\non = ["warn"]\n'
        '[[notify]]\nwebhook = "https://hooks.acme.com/s3cret"\n'
        '[[notify]]\ncommand = ["no-such-program-of-mcpguard"]\n'
    )
    found = of(doctor(tmp_path, status=1), "notify")
    usual, missing = "on denied, warn, unavailable", "no-such-program-of-mcpguard"
    assert [(one.ok, one.detail) for one in found] == [
        (True, f"command {sys.executable}, on warn"),
        (True, f"webhook at hooks.acme.com, {usual}"),
        (False, f"command {missing}, {usual}: {missing} is not installed"),
    ]


def test_it_sends_a_message_if_it_is_asked_to(tmp_path: Path) -> None:
    with webhook() as hook:
        (tmp_path / "config.toml").write_text(f'[[notify]]\nwebhook = "{hook.url}"\n')
        (sent,) = of(doctor(tmp_path, "--notify"), "notify")
        assert sent.detail.endswith(": a message was sent")
        hook.status = 404
        (failed,) = of(doctor(tmp_path, "--notify", status=1), "notify")
    assert failed.detail == "not sent: webhook at 127.0.0.1: it answers with HTTP status 404"
    assert [one["text"] for one in hook.messages] == ["this is a test of mcpguard doctor"] * 2


def test_without_a_way_there_is_nothing_to_try(tmp_path: Path) -> None:
    (one,) = of(doctor(tmp_path, "--notify", status=1), "notify")
    assert one.detail == "config.toml has no [[notify]]"


def test_a_broken_policy_fails_with_its_line(tmp_path: Path) -> None:
    file = policy(tmp_path, rule("5/1m", user="*") + "[[rule]]\nlimit = 5\n")
    found = only(doctor(tmp_path, status=1), "policy")
    assert not found.ok
    assert found.detail.startswith(f"{file}: line 6: ")


def test_a_policy_that_denies_nothing_is_noted(tmp_path: Path) -> None:
    file = policy(tmp_path, 'mode = "observe"\n' + rule("5/1m", user="*"))
    found = only(doctor(tmp_path), "policy")
    assert (found.detail, found.is_advice) == (f"{file}: 1 rule, observe mode denies nothing", True)
    policy(tmp_path, 'mode = "enforce"\n')
    found = only(doctor(tmp_path), "policy")
    assert (found.detail, found.is_advice) == (f"{file}: no rules, so nothing is limited", True)


def test_each_warning_of_policy_check_is_a_note(tmp_path: Path) -> None:
    capped = rule("30/1m", user="*") + rule("10000/1h", user="*", tool="x")
    policy(tmp_path, capped + rule("5/1m", tool="mcp__crm__search") + '[[cost]]\ntool = "x"\ncost = 2\n')
    calls(tmp_path, "x", 1)
    _, cost, name, cap, unmatched = found = of(doctor(tmp_path), "policy")
    assert [one.is_advice for one in found] == [False, *[True] * 4]
    assert cost.detail.startswith("line 14: the cost of tool=x has no effect")
    assert "mcp__crm__search" in name.detail
    assert "rule 1 (user=*) still caps calls of rule 2 more tightly, at 30/1m" in cap.detail
    assert unmatched.detail.endswith("rule 3 (tool=mcp__crm__search) has matched none of the calls in the audit log")


def test_a_rule_of_the_starter_policy_need_not_have_matched_and_a_tier_that_no_rule_matches_is_a_note(tmp_path: Path) -> None:
    calls(tmp_path, "x", 1)
    assert not only(doctor(tmp_path), "policy").is_advice
    _, warning = of(doctor(tmp_path, "--agent", "a::batch::b"), "policy")
    assert warning.is_advice
    assert warning.detail.startswith("no rule matches agents of the tier batch")


def test_a_valid_token_names_the_user_and_when_it_ends(tmp_path: Path, keys: KeyServer) -> None:
    secret = token(exp=int(time.time()) + 30 * provider.DAY_S + 60)
    write_token(settings(tmp_path, f"{keys.url}?code=s3cret"), secret)
    checks = doctor(tmp_path)
    assert only(checks, "identity").detail.startswith("user alice (the token), agent unknown::interactive::default ")
    assert only(checks, "token").detail.startswith(f"{tmp_path / 'token'}: valid until 20")
    assert only(checks, "token").detail.endswith(", for 30 d")
    assert only(checks, "keys").detail == f"{keys.url}: 1 key"
    assert not [part for part in (*secret.split("."), "s3cret") if part in str(checks)]


@pytest.mark.posix  # Windows has access lists in place of modes
def test_every_problem_of_a_token_fails(tmp_path: Path, keys: KeyServer) -> None:
    file = settings(tmp_path, keys.url)
    file.write_text(token(exp=1, iss="x"), "utf-8")
    file.chmod(0o644)
    checks = doctor(tmp_path, status=1)
    assert not only(checks, "identity").ok
    issuer, expiry, mode = of(checks, "token")
    assert issuer.detail == f"the token in {file} is not from the issuer {ISSUER}"
    assert expiry.detail == f"the token in {file} expired at 1970-01-01T00:00:01Z"
    assert (mode.hint, mode.is_advice) == (f"run chmod 600 {file}", True)
    assert mode.detail == f"others can read the token in {file} (mode 0644)"
    assert only(checks, "keys").ok


@pytest.mark.parametrize("text", [None, "s3cret"], ids=["missing", "no token"])
def test_without_a_token_nobody_is_verified_and_no_text_is_shown(tmp_path: Path, keys: KeyServer, text: str | None) -> None:
    file = settings(tmp_path, keys.url)
    if text:
        write_token(file, text)
    checks = doctor(tmp_path, status=1)
    assert (only(checks, "identity").ok, only(checks, "token").ok, "s3cret" in str(checks)) == (False, False, False)


def test_the_key_server_is_asked_even_if_its_keys_are_cached(tmp_path: Path, keys: KeyServer) -> None:
    write_token(settings(tmp_path, keys.url), token())
    doctor(tmp_path)
    keys.status = 503
    found = only(doctor(tmp_path, status=1), "keys")
    assert found.detail == f"{keys.url}: it answers with HTTP status 503"
    keys.status, keys.body = 200, b'{"keys": []}'
    assert "no key" in only(doctor(tmp_path, status=1), "keys").detail


def test_a_token_that_is_not_used_is_noted_and_a_broken_agent_fails(tmp_path: Path) -> None:
    found = only(doctor(tmp_path, MCPGUARD_TOKEN="s3cret"), "token")
    assert found.is_advice
    assert "s3cret" not in str(found)
    found = only(doctor(tmp_path, "--agent", "a::b", status=1), "identity")
    assert not found.ok


def program(folder: Path) -> Path:
    return Path(impostor(folder / PROGRAM, folder / "touched"))


def checks(own: Path, *folders: Path) -> list[Check]:
    found = list(found_on([str(folder) for folder in folders], own))
    assert {one.check for one in found} == {"PATH"}
    return found


@follows_links
def test_a_link_to_the_own_command_is_the_own_command(tmp_path: Path) -> None:
    own = program(tmp_path / "own")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / PROGRAM).symlink_to(own)
    good = Check("PATH", True, f"{tmp_path / 'bin' / PROGRAM}, version {__version__}")
    assert checks(own, tmp_path / "none", tmp_path / "bin", tmp_path / "own", tmp_path / "bin") == [good]
    (tmp_path / "alias").symlink_to(tmp_path / "own")  # such as the folder of a virtual environment
    assert checks(tmp_path / "alias" / PROGRAM, tmp_path / "own") == [Check("PATH", True, f"{own}, version {__version__}")]


def test_the_own_command_is_the_first_one_though_its_folder_is_on_the_path_again_after_another_command(tmp_path: Path) -> None:
    own, other = program(tmp_path / "own"), program(tmp_path / "other")
    found, more = checks(own, tmp_path / "own", tmp_path / "other", tmp_path / "own")
    assert found == Check("PATH", True, f"{own}, version {__version__}")
    assert more.detail == f"there are more of them: {other}"


def test_a_command_that_is_not_on_the_path_is_noted_with_its_full_path(tmp_path: Path) -> None:
    own = program(tmp_path / "own")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/mcpguard").write_text("not executable", "utf-8")
    (tmp_path / "sources/mcpguard").mkdir(parents=True)
    (found,) = checks(own, tmp_path / "bin", tmp_path / "sources")
    assert found.is_advice
    assert found.hint.endswith(str(own))


def test_a_program_that_is_not_installed_is_not_named(tmp_path: Path) -> None:
    own, other = tmp_path / "none" / PROGRAM, installed(tmp_path / "other", "0.0.1")
    (found,) = checks(own, tmp_path / "bin")
    assert (found.detail, found.hint) == (
        f"mcpguard {__version__} is not on the PATH",
        "install it as a program: uv tool install mcpguard-cli",
    )
    (found,) = checks(own, tmp_path / "other/bin")
    assert str(own.parent) not in found.detail + found.hint
    assert found.detail.endswith(f"this one is {__version__} in {Path(mcpguard.__file__).parent}")
    assert found.hint == f"remove or upgrade {other}"


@pytest.mark.parametrize(("version", "ok"), [(__version__, True), ("0.0.1", False), (None, True)])
def test_another_command_before_the_own_is_told_with_its_version_not_run(tmp_path: Path, version: str | None, ok: bool) -> None:
    own = program(tmp_path / "own")
    other = installed(tmp_path / "other", version) if version else str(program(tmp_path / "other/bin"))
    found, more = checks(own, tmp_path / "other/bin", tmp_path / "own")
    assert (found.ok, bool(found.hint)) == (ok, True)
    assert found.detail == f"{other} is another mcpguard, version {version or 'unknown'}; this one is {__version__} in {own}"
    assert (more.is_advice, more.detail) == (True, f"there are more of them: {own}")
    assert not (tmp_path / "other/bin/touched").exists()


@pytest.mark.posix
def test_another_command_that_others_may_change_is_noted(tmp_path: Path) -> None:
    own, other = program(tmp_path / "own"), program(tmp_path / "other")
    other.parent.chmod(0o777)
    (found,) = checks(own, tmp_path / "other")
    reason = f"{other.parent} may be written to by everybody"
    told = f"{other} is found first, and other accounts may change it: {reason}"
    assert found == Check("PATH", True, told, f"remove {other.parent} from it")
    assert not (tmp_path / "other/touched").exists()
