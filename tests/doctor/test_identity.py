import time
from pathlib import Path

import pytest

from tests import provider
from tests.doctor.checks import doctor, of, only
from tests.provider import ISSUER, KeyServer, settings, token, write_token


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
