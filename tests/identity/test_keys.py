"""The keys of a provider: which are accepted, how they are cached, and how often they are fetched."""

import json
import os
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from hypothesis import given
from hypothesis import strategies as st
from jwt.algorithms import RSAAlgorithm

from mcpguard.identity.keys import FETCH_S, FILE_REFRESH_S, MAX_AGE_S, REFRESH_S, ProviderKeys, parse_keys
from tests.build import raising
from tests.end_to_end.host import until
from tests.identity.token_holder import Provider
from tests.provider import KeyServer, jwk, key, key_set
from tests.web_server import reply


@pytest.fixture
def idp(tmp_path: Path) -> Provider:
    return Provider(tmp_path)


def from_file(folder: Path, *keys: dict[str, Any]) -> ProviderKeys:
    (folder / "keys.json").write_bytes(key_set(*keys))
    return ProviderKeys(folder / "keys.json", folder)


def seek(idp: Provider, keys: ProviderKeys) -> int:
    """Seek, and wait for the fetch. Returns how often the provider has been asked."""
    keys.seek()
    keys.wait(30)
    until(lambda: not keys.is_fetching, "the end of a fetch")
    return idp.asked


def cache(idp: Provider) -> Path:
    (file,) = (idp.home / "state").iterdir()
    return file


def knows(keys: ProviderKeys, number: int = 0) -> bool:
    return len(keys.find(f"RS256-{number}", "RS256")) == 1


# Parsing and finding keys


@pytest.mark.parametrize(
    "entry",
    [
        *(jwk(use="enc"), jwk(use=None), jwk(kty="oct"), jwk(kty=None), jwk(n=""), jwk(n=7), jwk(n="é" * 400)),
        {"kty": "oct", "k": "c2VjcmV0", "kid": "RS256-0", "alg": "HS256"},
        json.loads(RSAAlgorithm.to_jwk(rsa.generate_private_key(65537, 1024).public_key())),  # noqa: S505 - just that
        "text",
        None,
    ],
    ids=range(11),
)
def test_a_key_that_is_too_weak_or_not_for_signatures_is_ignored(entry: Any) -> None:
    with pytest.raises(ValueError, match="no key in it that verifies"):
        parse_keys(key_set(entry))
    assert len(parse_keys(key_set(entry, jwk(number=1)))) == 1


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"{}", b'{"keys":7}', b'{"keys":{}}', b"\xff", b"[" * 99999, b"<html>"])
def test_data_that_is_not_a_key_set_is_an_error(data: bytes) -> None:
    with pytest.raises(ValueError, match="this is not a key set"):
        parse_keys(data)


@given(st.binary(max_size=200) | st.text().map(str.encode))
def test_any_data_that_is_not_a_key_set_is_a_one_line_error(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"this is not a key set|there is no key in it"):
        parse_keys(data)


def test_private_members_of_a_key_are_dropped() -> None:
    private = json.loads(RSAAlgorithm.to_jwk(key("RS256", 0)))
    (taken,) = parse_keys(key_set({**private, "x5c": ["…"]}))
    assert taken == {"kty": "RSA", "n": private["n"], "e": private["e"]}


def test_a_key_is_found_by_kid_only_for_its_own_algorithm(tmp_path: Path) -> None:
    keys = from_file(tmp_path, jwk("RS256"), jwk("PS256"), jwk("ES256"), jwk("ES384"), jwk("EdDSA"))
    for algorithm in ("RS256", "PS256", "ES256", "ES384", "EdDSA"):
        (found,) = keys.find(f"{algorithm}-0", algorithm)
        assert (found.algorithm_name, found.key_id) == (algorithm, f"{algorithm}-0")
        assert [keys.find(f"{algorithm}-0", other) for other in ("RS512", "ES512")] == [[], []]
        assert [one.key_id for one in keys.find(None, algorithm)] == [found.key_id]


def test_a_key_without_alg_is_found_for_all_algorithms_of_its_type_and_one_without_a_name_for_no_kid(tmp_path: Path) -> None:
    bare = from_file(tmp_path, *({**jwk(name), "alg": None} for name in ("RS256", "ES256", "EdDSA")))
    assert [bare.find("ES256-0", "ES384"), bare.find("RS256-0", "EdDSA")] == [[], []]
    assert [len(bare.find("RS256-0", name)) for name in ("RS256", "RS512", "PS512")] == [1, 1, 1]
    nameless = from_file(tmp_path, {**jwk(), "kid": None})
    assert (nameless.find("RS256-0", "RS256"), len(nameless.find(None, "RS256"))) == ([], 1)


def test_without_a_kid_up_to_sixteen_fitting_keys_are_found(tmp_path: Path) -> None:
    three = from_file(tmp_path, jwk("ES256"), *(jwk(kid=f"k{number}") for number in range(3)))
    assert [key.key_id for key in three.find(None, "RS256")] == ["k0", "k1", "k2"]
    many = from_file(tmp_path, *(jwk(kid=f"k{number}") for number in range(99)))
    assert len(many.find(None, "RS256")) == 16
    assert len(many.find("k98", "RS256")) == 1


# Fetching


def test_keys_are_fetched_at_the_start_and_then_at_most_every_thirty_seconds(idp: Provider) -> None:
    keys = idp.load()
    assert (idp.asked, knows(keys)) == (1, True)
    idp.answers = [key_set(jwk(number=1))]
    assert seek(idp, keys) == 2  # the first load is not counted
    assert (knows(keys), knows(keys, 1)) == (False, True)
    idp.now_s += REFRESH_S - 0.1
    assert seek(idp, keys) == 2
    idp.now_s += 0.1
    assert [seek(idp, keys), seek(idp, keys)] == [3, 3]


@pytest.mark.parametrize("answer", [ValueError("it answers with HTTP status 500"), b"<html>", key_set(), KeyError("x")])
def test_a_failed_fetch_leaves_the_keys_in_use(idp: Provider, answer: bytes | Exception) -> None:
    keys = idp.load()
    idp.answers = [answer]
    seek(idp, keys)
    assert knows(keys)
    assert keys.problem
    assert not keys.is_fetching
    idp.now_s += REFRESH_S
    idp.answers = [key_set(jwk(number=1))]
    seek(idp, keys)
    assert (knows(keys, 1), keys.problem) == (True, "")


def test_a_first_fetch_that_fails_is_repeated_by_the_next_call_and_then_at_most_every_thirty_seconds(idp: Provider) -> None:
    idp.answers = [ValueError("connection refused")]
    keys = idp.load()
    assert (knows(keys), keys.problem) == (False, "connection refused")
    assert [seek(idp, keys), seek(idp, keys), seek(idp, keys)] == [2, 2, 2]


def test_a_fetch_without_a_thread_fails_and_is_not_the_last_one(idp: Provider, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", raising(RuntimeError("can't start new thread")))
        keys = idp.load()
    assert (keys.problem, keys.is_fetching) == ("can't start new thread", False)
    assert (seek(idp, keys), knows(keys), keys.problem) == (1, True, "")


def test_nobody_waits_longer_than_the_timeout_and_keys_that_arrive_later_are_used(idp: Provider) -> None:
    keys = idp.load()
    idp.answers = [key_set(jwk(number=1))]
    idp.go_on.clear()
    keys.seek()
    keys.wait(0.01)
    assert keys.is_fetching
    idp.now_s += FETCH_S
    assert (keys.is_fetching, keys.problem) == (False, "no answer in 2 s")
    keys.wait(30)  # not for them
    idp.now_s += REFRESH_S
    keys.seek()
    assert idp.asked == 2
    before = keys.state
    idp.go_on.set()
    until(lambda: keys.state != before, "the end of a fetch")
    assert (idp.asked, knows(keys, 1), keys.problem) == (2, True, "")


def test_old_keys_are_stale_although_none_is_missing(idp: Provider) -> None:
    keys = idp.load()
    assert keys.stale_s == idp.now_s + MAX_AGE_S
    idp.now_s -= 10_000  # a clock that was set back tells no age
    assert keys.stale_s < idp.now_s


# The cache


def test_keys_are_cached_for_the_next_start_and_others_cannot_read_the_cache(idp: Provider) -> None:
    idp.load()
    modes = (cache(idp).stat().st_mode & 0o777, cache(idp).parent.stat().st_mode & 0o777)
    assert sys.platform == "win32" or modes == (0o600, 0o700)
    idp.now_s += 100
    idp.answers = [ValueError("down")]
    keys = idp.load()
    assert (idp.asked, knows(keys), keys.fetched_s) == (1, True, idp.now_s - 100)


@pytest.mark.parametrize("fetched_s", ["Infinity", "NaN", "1e999", "-1", "0", "9" * 400, "1" * 5000, '"1"', "true", "[1]"])
def test_cached_keys_with_an_invalid_time_are_ignored(idp: Provider, fetched_s: str) -> None:
    idp.load()
    text = cache(idp).read_text().replace(f'"fetched_s": {idp.now_s}', f'"fetched_s": {fetched_s}')
    assert fetched_s in text
    cache(idp).write_text(text)
    keys = idp.load()
    assert (idp.asked, knows(keys), keys.fetched_s) == (2, True, idp.now_s)


def test_a_secret_in_the_urls_query_reaches_only_the_provider(keys: KeyServer, tmp_path: Path) -> None:
    paths: list[str] = []

    def answer(handler: BaseHTTPRequestHandler) -> None:
        paths.append(handler.path)
        reply(handler, 200, {}, keys.body)

    keys.behaviour = answer
    found = ProviderKeys(f"{keys.url}?code=s3cret#s3cret", tmp_path, fetch_s=30)
    found.wait(30)
    assert knows(found)
    assert paths == ["/jwks.json?code=s3cret"]
    (file,) = tmp_path.iterdir()
    assert "s3cret" not in found.source + file.name + file.read_text()
    assert found.source == keys.url
    keys.behaviour = lambda _: keys.pause()  # what is known is what was kept
    assert ProviderKeys(f"{keys.url}?code=other", tmp_path).fetched_s is None  # keys of one URL are not another's


ENTRIES = ["7", "{}", "[[[[]]]]", '[{"kty": {}}]', '[{"kty":"RSA","n":[1],"e":NaN}]', '["a"]', "null"]


@pytest.mark.parametrize(
    "content",
    [
        *(f'{{"fetched_s": 1, "keys": {one}}}'.encode() for one in ENTRIES),
        *(b"", b"{", b"[]", b"{}", b"\xff", b"[" * 99999),
    ],
    ids=range(13),
)
def test_a_broken_cache_is_ignored(idp: Provider, content: bytes) -> None:
    idp.load()
    cache(idp).write_bytes(content)
    assert (knows(idp.load()), idp.asked) == (True, 2)


@pytest.mark.parametrize("make", [os.mkdir, pytest.param(getattr(os, "mkfifo", None), marks=pytest.mark.posix)])
def test_what_is_no_file_in_place_of_a_cache_is_ignored(idp: Provider, make: Callable[[Path], None]) -> None:
    idp.load()
    file = cache(idp)
    file.unlink()
    make(file)
    assert (knows(idp.load()), idp.asked) == (True, 2)


def test_without_a_writable_cache_the_next_start_fetches_the_keys(idp: Provider) -> None:
    (idp.home / "state").write_text("a file")
    for asked in (1, 2):
        assert knows(idp.load())
        assert idp.asked == asked


# A file of keys


def test_a_file_of_keys_is_read_again_on_seek_and_its_last_good_keys_stay(idp: Provider) -> None:
    file = idp.home / "keys.json"
    keys = idp.load(file)

    def sought(later_s: float = 0) -> tuple[bool, str]:
        idp.now_s += later_s
        keys.seek()
        return knows(keys), keys.problem

    assert (knows(keys), keys.problem, keys.fetched_s) == (False, "No such file or directory", None)
    file.write_bytes(key_set(jwk()))
    assert sought() == (True, "")
    file.write_bytes(b"{")
    assert sought() == (True, "")
    assert sought(FILE_REFRESH_S) == (True, "this is not a key set")
    file.unlink()
    file.mkdir()
    assert sought(FILE_REFRESH_S) == (True, "Permission denied" if sys.platform == "win32" else "Is a directory")
    assert (idp.asked, [one.name for one in idp.home.iterdir()]) == (0, ["keys.json"])
