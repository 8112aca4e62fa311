"""A token and its keys while they change and time passes."""

import os
import threading
import time
from pathlib import Path

import pytest

from mcpguard import files
from mcpguard.identity.keys import FILE_AGE_S, FILE_REFRESH_S, MAX_AGE_S, REFRESH_S, ProviderKeys
from mcpguard.identity.token import TokenSource
from tests.end_to_end.host import until
from tests.identity.token_holder import CONFIGURED, Wrapper, told
from tests.provider import jwk, key_set, token, write_token

NOT_THEIRS = "has a signature that is not "


def test_an_unchanged_token_is_not_verified_again(wrapper: Wrapper, monkeypatch: pytest.MonkeyPatch) -> None:
    wrapper.has(token())
    os.utime(wrapper.file, (1, 1))
    monkeypatch.setattr(time, "time_ns", lambda: (int(wrapper.now_s) + 1000) * 10**9)
    assert wrapper.polls() == "nothing new"
    monkeypatch.setattr(files, "read_at_once", None)
    monkeypatch.setattr(TokenSource, "examine", None)
    assert wrapper.polls() == "nothing new"


def test_a_new_token_is_used_at_once_and_its_expiry_is_noticed(wrapper: Wrapper) -> None:
    now_s = int(wrapper.now_s)
    wrapper.has(token(exp=now_s + 10))
    wrapper.now_s = now_s + 39.9
    assert wrapper.polls() == "nothing new"
    wrapper.now_s = now_s + 40
    assert "expired at" in wrapper.polls()
    assert wrapper.polls() == "nothing new"
    write_token(wrapper.file, token(exp=now_s + 100))
    assert wrapper.polls() == "alice"
    write_token(wrapper.file, token(exp=now_s + 200))
    assert wrapper.polls() == "nothing new"  # the same user
    write_token(wrapper.file, token(sub="bob", exp=now_s + 200))
    assert wrapper.polls() == "bob"
    said = [line.partition(str(wrapper.file))[0] for line in wrapper.lines]
    assert said == ["unauthenticated: the token in ", "user alice, verified", "user bob, verified"]


def test_a_token_that_is_not_valid_yet_is_accepted_from_its_time_on(wrapper: Wrapper) -> None:
    begins_s = int(wrapper.now_s) + 100
    assert "is not valid before" in wrapper.has(token(nbf=begins_s, iat=begins_s))
    wrapper.now_s = begins_s - 30.1
    assert wrapper.polls() == "nothing new"
    wrapper.now_s += REFRESH_S
    assert wrapper.polls() == "alice"


def test_a_key_added_to_the_file_is_used_after_a_second_and_a_removed_key_is_dropped_soon(wrapper: Wrapper) -> None:
    assert "is signed with a key that" in wrapper.has(token(number=1))
    wrapper.jwks.write_bytes(key_set(jwk(), jwk(number=1)))
    wrapper.now_s += FILE_REFRESH_S
    assert wrapper.polls() == "alice"
    wrapper.jwks.write_bytes(key_set(jwk()))
    wrapper.now_s += FILE_AGE_S
    assert "is signed with a key that" in wrapper.polls()


def test_a_token_that_neither_the_old_keys_nor_the_new_ones_verify_is_rejected(wrapper: Wrapper) -> None:
    wrapper.jwks.write_bytes(key_set(jwk(number=1, kid="RS256-0")))
    assert NOT_THEIRS in wrapper.has(token(number=2, headers={"kid": "RS256-0"}))
    assert wrapper.has(token(number=1, headers={"kid": "RS256-0"})) == "alice"


def after_a_slow_fetch(remote: Wrapper, later_s: float) -> str:
    """What a call is told when the fetch has ended that has begun some time later, and that changes nothing meanwhile."""
    remote.go_on.clear()
    remote.now_s += later_s
    assert told(remote.source.poll()) == "nothing new"
    assert remote.keys.is_fetching
    remote.go_on.set()
    remote.keys.wait(30)
    return told(remote.source.poll())


def test_a_withdrawn_key_is_used_until_the_fetch_ends_and_no_longer(tmp_path: Path) -> None:
    remote = Wrapper(tmp_path, answers=[key_set(jwk()), key_set(jwk(number=1))])
    assert remote.has(token(exp=int(remote.now_s) + 9999)) == "alice"
    assert "is signed with a key that https://idp.acme.com/keys does not have" in after_a_slow_fetch(remote, MAX_AGE_S)


@pytest.mark.parametrize("kid", ["RS256-0", None])
def test_a_signature_that_no_known_key_verifies_fetches_keys_and_the_call_waits(tmp_path: Path, kid: str | None) -> None:
    remote = Wrapper(tmp_path, answers=[key_set(jwk(number=1, kid="RS256-0")), key_set(jwk())])
    remote.has(token(number=1, headers={"kid": "RS256-0"}))
    remote.go_on.clear()
    write_token(remote.file, token(headers={"kid": kid}))
    said = told(remote.source.poll(for_call=False))
    assert NOT_THEIRS in said
    assert said.endswith("; newer keys are being fetched")
    remote.go_on.set()
    assert remote.polls() == "alice"
    assert remote.asked == 2


def test_a_bad_signature_is_verified_once_and_not_for_every_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    remote = Wrapper(tmp_path, answers=(key_set(jwk()),))
    remote.has(token(number=1, headers={"kid": "RS256-0"}))
    for _ in range(3):
        remote.polls()
    monkeypatch.setattr(TokenSource, "examine", None)
    assert remote.polls() == "nothing new"


@pytest.mark.parametrize(
    ("kid", "what"),
    [
        ("RS256-1", "is signed with a key that https://idp.acme.com/keys does not have"),
        ("RS256-0", f"{NOT_THEIRS}https://idp.acme.com/'s"),
    ],
)
def test_while_the_provider_is_down_the_message_says_so_without_the_urls_secret(tmp_path: Path, kid: str, what: str) -> None:
    newer = key_set(jwk(number=1), jwk(number=1, kid="RS256-0"))
    remote = Wrapper(tmp_path, answers=(key_set(jwk()), ValueError("connection refused"), newer))
    remote.has(token(number=1, headers={"kid": kid}))
    end = "newer keys cannot be fetched from https://idp.acme.com/keys: connection refused"
    until(lambda: not remote.keys.is_fetching, "the end of a fetch")
    assert told(remote.source.begin()) == f"the token in {remote.file} {what}; {end}"
    remote.now_s += REFRESH_S
    remote.polls()
    assert told(remote.source.begin()) == "alice"
    assert "s3cret" not in " ".join([*remote.lines, *(file.read_text() for file in tmp_path.glob("state/jwks-*"))])


@pytest.mark.parametrize("published", [(), (key_set(jwk(number=1)),)])
def test_after_repeated_failures_no_message_says_that_keys_are_fetched(tmp_path: Path, published: tuple[bytes, ...]) -> None:
    remote = Wrapper(tmp_path, answers=(*published, ValueError("connection refused")))
    if published:
        remote.keys.seek()
        remote.keys.wait(30)
        remote.now_s += REFRESH_S
    remote.go_on.clear()
    assert "keys are being fetched" in remote.has(token(exp=int(remote.now_s) + 9999))
    remote.go_on.set()
    remote.keys.wait(30)
    assert remote.polls().endswith("keys cannot be fetched from https://idp.acme.com/keys: connection refused")


def test_a_clock_that_is_set_back_extends_neither_a_token_nor_keys(tmp_path: Path) -> None:
    remote = Wrapper(tmp_path, answers=[key_set(jwk()), key_set(jwk(number=1))])
    exp = int(remote.now_s) + 9999
    assert remote.has(token(exp=exp, iat=None)) == "alice"
    assert "is signed with a key that" in after_a_slow_fetch(remote, -86400)


@pytest.mark.posix
@pytest.mark.parametrize("is_link", [False, True])
@pytest.mark.parametrize("mode", [0o600, 0o400, 0o640, 0o604, 0o666])
def test_a_token_file_that_others_can_read_is_warned_of_once(wrapper: Wrapper, mode: int, *, is_link: bool) -> None:
    target = wrapper.home / "target" if is_link else wrapper.file
    target.write_text(token())
    target.chmod(mode)
    if is_link:
        wrapper.file.symlink_to(target)
    wrapper.source.begin()
    wrapper.source.examine()
    said = f"others can read the token in {wrapper.file} (mode {mode:04o}): chmod 600 {wrapper.file}"
    assert wrapper.lines == ([] if mode in (0o600, 0o400) else [said])


@pytest.mark.posix
def test_a_token_file_that_becomes_readable_for_others_is_warned_of_although_the_token_is_the_same(wrapper: Wrapper) -> None:
    wrapper.has(token())
    wrapper.file.chmod(0o644)
    wrapper.source.poll()
    assert len(wrapper.lines) == 1


def test_only_a_call_waits_for_a_fetch_of_keys(wrapper: Wrapper, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    ended = threading.Event()
    keys = ProviderKeys("https://idp.acme.com/keys", wrapper.home, fetch=lambda *_: bytes(ended.wait(30)))
    monkeypatch.setattr(keys, "wait", waits.append)
    wrapper.file.write_text(token())
    source = TokenSource(wrapper.settings, CONFIGURED, {}, budget_ms=250, notify=print, keys=keys)
    assert told(source.begin()) == "keys are being fetched from https://idp.acme.com/keys"
    source.poll(for_call=False)
    assert waits == []
    source.poll(for_call=True)
    assert waits == [0.25]
    ended.set()
