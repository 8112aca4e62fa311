"""A token and its keys as they change, and as time goes by."""

import os
import threading
import time
from pathlib import Path

import pytest

from mcpguard.jwks import MAX_AGE_S, RemoteKeys
from mcpguard.tokens import TokenSource
from tests.provider import jwk, key_set, token, write_token
from tests.token_holder import CONFIGURED, Wrapper, told

NOT_THEIRS = "has a signature that is not "


@pytest.fixture
def wrapper(tmp_path: Path) -> Wrapper:
    return Wrapper(tmp_path)


def test_a_token_that_does_not_change_is_not_looked_at_again(wrapper: Wrapper, monkeypatch: pytest.MonkeyPatch) -> None:
    wrapper.has(token())
    os.utime(wrapper.file, (1, 1))
    monkeypatch.setattr(time, "time_ns", lambda: (int(wrapper.now_s) + 1000) * 10**9)
    assert wrapper.polls() == "nothing new"
    monkeypatch.setattr(Path, "open", None)
    monkeypatch.setattr(TokenSource, "examine", None)
    assert wrapper.polls() == "nothing new"


def test_a_token_is_verified_once_while_its_file_is_young(wrapper: Wrapper, monkeypatch: pytest.MonkeyPatch) -> None:
    wrapper.has(token())
    monkeypatch.setattr(TokenSource, "examine", None)
    assert wrapper.polls() == "nothing new"


def test_a_token_is_taken_up_whenever_it_changes_and_its_end_is_noticed(wrapper: Wrapper) -> None:
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
    assert [line.partition(str(wrapper.file))[0] for line in wrapper.lines] == [
        "unauthenticated: the token in ",
        "user alice, verified",
        "user bob, verified",
    ]


def test_a_token_of_the_future_counts_when_its_time_has_come(wrapper: Wrapper) -> None:
    begins_s = int(wrapper.now_s) + 100
    assert "is not valid before" in wrapper.has(token(nbf=begins_s, iat=begins_s))
    wrapper.now_s = begins_s - 30.1
    assert wrapper.polls() == "nothing new"
    wrapper.now_s = begins_s - 30
    assert wrapper.polls() == "alice"


def test_a_key_that_is_added_to_the_file_counts_at_once_and_one_that_is_withdrawn_soon(wrapper: Wrapper) -> None:
    assert "is signed with a key that" in wrapper.has(token(number=1))
    wrapper.jwks.write_bytes(key_set(jwk(), jwk(number=1)))
    assert wrapper.polls() == "alice"
    wrapper.jwks.write_bytes(key_set(jwk()))
    wrapper.now_s += 61
    assert "is signed with a key that" in wrapper.polls()


def test_a_key_that_the_provider_withdraws_serves_while_that_is_asked_and_no_longer(wrapper: Wrapper) -> None:
    published = [key_set(jwk()), key_set(jwk(number=1))]
    go_on = threading.Event()
    go_on.set()
    now: dict[str, float] = {"now_s": wrapper.now_s}

    def fetch(*_: object) -> bytes:
        assert go_on.wait(30)
        return published.pop(0)

    keys = RemoteKeys("https://idp.acme.com/keys", wrapper.home, wall=lambda: now["now_s"], fetch=fetch)
    keys.wait(30)
    wrapper.file.write_text(token(exp=int(wrapper.now_s) + 9999))
    source = TokenSource(wrapper.settings, CONFIGURED, {}, budget_ms=1, notify=print, keys=keys, clock=lambda: now["now_s"])
    assert told(source.begin()) == "alice"
    go_on.clear()
    now["now_s"] += MAX_AGE_S
    assert told(source.poll()) == "nothing new"
    assert keys.is_fetching
    go_on.set()
    keys.wait(30)
    assert "is signed with a key that https://idp.acme.com/keys does not have" in told(source.poll())


def test_a_provider_that_gives_a_new_key_an_old_name_is_understood_in_time(wrapper: Wrapper) -> None:
    wrapper.jwks.write_bytes(key_set(jwk(number=1, kid="RS256-0")))
    wrapper.keys.seek()
    assert NOT_THEIRS in wrapper.has(token())
    wrapper.jwks.write_bytes(key_set(jwk()))
    assert wrapper.polls() == "nothing new"
    wrapper.now_s += 61
    assert wrapper.polls() == "alice"


def test_keys_that_cannot_be_read_are_told_of(wrapper: Wrapper) -> None:
    wrapper.jwks.unlink()
    wrapper.file.write_text(token())
    source = TokenSource(wrapper.settings, CONFIGURED, {}, budget_ms=1, notify=print)
    assert told(source.begin()) == f"keys cannot be had from {wrapper.jwks}: no such file"


@pytest.mark.parametrize(("mode", "warned"), [(0o600, False), (0o400, False), (0o640, True), (0o604, True), (0o666, True)])
def test_a_file_that_others_can_read_is_warned_of_once(wrapper: Wrapper, mode: int, warned: bool) -> None:
    wrapper.file.write_text(token())
    wrapper.file.chmod(mode)
    wrapper.source.begin()
    wrapper.source.examine()
    assert wrapper.lines == (
        [f"others can read the token in {wrapper.file} (mode {mode:04o}): chmod 600 {wrapper.file}"] * warned
    )


def test_a_call_waits_for_keys_that_are_on_their_way_and_nothing_else_does(wrapper: Wrapper) -> None:
    waits: list[float] = []

    class Slow(RemoteKeys):
        def wait(self, timeout_s: float) -> None:
            waits.append(timeout_s)

    ended = threading.Event()
    keys = Slow("https://idp.acme.com/keys", wrapper.home, fetch=lambda *_: bytes(ended.wait(30)))
    wrapper.file.write_text(token())
    source = TokenSource(wrapper.settings, CONFIGURED, {}, budget_ms=250, notify=print, keys=keys)
    assert told(source.begin()) == "keys are being fetched from https://idp.acme.com/keys"
    source.poll(for_call=False)
    assert waits == []
    source.poll(for_call=True)
    assert waits == [0.25]
    ended.set()
