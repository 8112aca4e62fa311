"""Tokens of every kind, with real signatures: which are accepted, and why others are rejected."""

import hashlib
import hmac
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from mcpguard.identity.jwt_settings import JwtSettings
from mcpguard.identity.token import MAX_TOKEN_BYTES, TokenSource
from tests.identity.token_holder import CONFIGURED, Wrapper, told
from tests.provider import AUDIENCE, ISSUER, claims, jwk, key, part, token

NOT_A_JWT = "is not a signed JWT"
NOT_RS256 = "is not signed with RS256"
NOT_THEIRS = f"has a signature that is not {ISSUER}'s"


# Signatures


ALGORITHMS = [*(f"{kind}{bits}" for kind in ("RS", "PS", "ES") for bits in (256, 384, 512)), "EdDSA"]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_only_tokens_signed_with_an_allowed_algorithm_are_accepted(tmp_path: Path, algorithm: str) -> None:
    assert Wrapper(tmp_path, jwk(algorithm), algorithms=(algorithm,)).has(token(algorithm)) == "alice"
    allowed = "ES256" if algorithm == "RS256" else "RS256"
    refusing = Wrapper(tmp_path, jwk(algorithm), algorithms=(allowed,))
    assert refusing.has(token(algorithm)) == f"the token in {refusing.file} is not signed with {allowed}"


@pytest.mark.parametrize("algorithm", ["RS256", "ES256"])
def test_a_token_without_a_kid_is_verified_with_each_fitting_key(tmp_path: Path, algorithm: str) -> None:
    others = (jwk("EdDSA"), jwk("ES384"), jwk(algorithm, 1), jwk(algorithm, 2, kid=None))
    wrapper = Wrapper(tmp_path, *others[1:], jwk(algorithm), algorithms=(algorithm, "EdDSA"))
    assert wrapper.has(token(algorithm, headers={"kid": None})) == "alice"
    assert wrapper.has(token(algorithm, 2, headers={"kid": None})) == "alice"
    assert NOT_THEIRS in wrapper.has(token(algorithm, 3, headers={"kid": None}))
    assert f"is signed with a key that {wrapper.jwks} does not have" in wrapper.has(token("EdDSA", headers={"kid": None}))


def unsigned(header: dict[str, Any] | bytes, said: dict[str, Any] | None = None, signature: bytes = b"") -> str:
    return f"{part(header)}.{part(said or claims())}.{part(signature)}"


def with_hmac(algorithm: str, secret: bytes) -> str:
    """A token that is accepted if the token may choose the algorithm: the HMAC secret is the public key, which all know."""
    signed = f"{part({'alg': algorithm, 'kid': 'RS256-0', 'typ': 'JWT'})}.{part(claims())}"
    return f"{signed}.{part(hmac.new(secret, signed.encode(), hashlib.sha256).digest())}"


def edited(text: str, **more: object) -> str:
    header, _, signature = text.split(".")
    return f"{header}.{part(claims(**more))}.{signature}"


def pem() -> bytes:
    public: bytes = key("RS256", 0).public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return public


POINTING = {"jku": "http://127.0.0.1:9/", "x5u": "http://127.0.0.1:9/"}
FORGED: dict[str, tuple[Callable[[], str], str]] = {
    "none": (lambda: unsigned({"alg": "none"}), NOT_RS256),
    "None": (lambda: unsigned({"alg": "None", "kid": "RS256-0"}), NOT_RS256),
    "no algorithm": (lambda: unsigned({"kid": "RS256-0"}), NOT_RS256),
    "a list of algorithms": (lambda: unsigned({"alg": ["RS256"]}), NOT_RS256),
    "hmac with the public key as PEM": (lambda: with_hmac("HS256", pem()), NOT_RS256),
    "hmac with the public key as JSON": (lambda: with_hmac("HS256", json.dumps(jwk()).encode()), NOT_RS256),
    "hmac that says RS256": (lambda: with_hmac("RS256", pem()), NOT_THEIRS),
    "no signature": (lambda: unsigned({"alg": "RS256", "kid": "RS256-0"}), NOT_THEIRS),
    "another key under a known name": (lambda: token(number=1, headers={"kid": "RS256-0"}), NOT_THEIRS),
    "another algorithm's signature": (lambda: token("PS256", headers={"alg": "RS256", "kid": "RS256-0"}), NOT_THEIRS),
    "edited payload": (lambda: edited(token(), sub="root"), NOT_THEIRS),
    "another header": (lambda: ".".join([part({"alg": "RS256", "kid": "RS256-0"}), *token().split(".")[1:]]), NOT_THEIRS),
    "an unknown key": (lambda: token(number=1), "is signed with a key that"),
    "its own key": (lambda: token(number=1, headers={"jwk": jwk(number=1)}), "is signed with a key that"),
    "its own key under a known name": (lambda: token(number=1, headers={"jwk": jwk(number=1), "kid": "RS256-0"}), NOT_THEIRS),
    "a URL of keys": (lambda: token(number=1, headers=POINTING | {"kid": "RS256-0"}), NOT_THEIRS),
    "a path for a key": (lambda: token(number=1, headers={"kid": "../../../../dev/null"}), "is signed with a key that"),
    "a critical extension": (lambda: token(headers={"crit": ["exp"], "exp": 1}), NOT_A_JWT),
    "an extension that detaches the payload": (lambda: unsigned({"alg": "RS256", "b64": False, "crit": ["b64"]}), NOT_A_JWT),
    "a detached payload": (lambda: token().replace(token().split(".")[1], ""), NOT_A_JWT),
    "a key's name that is none": (lambda: unsigned({"alg": "RS256", "kid": 7}), NOT_A_JWT),
    "an algorithm twice": (lambda: unsigned(b'{"alg":"none","alg":"RS256","kid":"RS256-0"}'), NOT_THEIRS),
}  # fmt: skip


@pytest.mark.parametrize("forged", FORGED)
def test_a_token_that_the_provider_did_not_sign_is_rejected(wrapper: Wrapper, forged: str) -> None:
    make, why = FORGED[forged]
    text = make()
    message = wrapper.has(text)
    assert message.startswith(f"the token in {wrapper.file} ")
    assert why in message
    assert not any(piece in message for piece in text.split(".") if piece)


def test_keys_that_a_token_carries_or_points_to_are_ignored(wrapper: Wrapper) -> None:
    assert wrapper.has(token(headers=POINTING | {"jwk": jwk(number=1)})) == "alice"


# Claims


def signed(payload: bytes) -> str:
    """A token with this payload, in which `%s` stands for the claims of a good token but `sub`."""
    usual = json.dumps({name: value for name, value in claims().items() if name != "sub"}).encode()[1:-1]
    return jwt.PyJWS().encode(payload.replace(b"%s", usual), key("RS256", 0), "RS256", {"kid": "RS256-0"})


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (b'{"sub":"alice","sub":"bob",%s}', "bob"),
        (b'{"sub":"alice",%s,"exp":1' + b"0" * 4000 + b"}", "has no time in exp"),
        *((b'{"sub":"alice",%s,"exp":' + exp + b"}", NOT_A_JWT) for exp in (b"NaN", b"-Infinity", b"1e999", b"9" * 9000)),
        (rb'{"sub":"\ud800",%s}', NOT_A_JWT),
        (rb'{"sub":"alice",%s,"roles":["\ud800"]}', NOT_A_JWT),
    ],
    ids=range(8),
)
def test_signed_claims_in_odd_json_name_a_user_or_are_refused_in_a_line(wrapper: Wrapper, payload: bytes, message: str) -> None:
    said = wrapper.has(signed(payload))
    assert said.endswith(message)
    assert "\n" not in said


@pytest.mark.parametrize(("opening", "closing"), [(b"[", b"]"), (b'{"act":', b"}")])
def test_signed_claims_that_are_nested_deeply_do_not_crash(wrapper: Wrapper, opening: bytes, closing: bytes) -> None:
    """How deep is too deep for the JSON parser depends on the version of Python."""
    payload = b'{"sub":"alice",%s,"act":' + opening * 5_000 + b"1" + closing * 5_000 + b"}"
    assert wrapper.has(signed(payload)).endswith((NOT_A_JWT, "alice"))


def problems(wrapper: Wrapper) -> list[str]:
    """What is wrong with the token in the file, without the place."""
    return [problem.message.partition(str(wrapper.file))[2] for problem in wrapper.source.examine().problems]


def test_the_message_about_a_forged_token_has_none_of_its_claims(wrapper: Wrapper) -> None:
    forged = token(number=1, headers={"kid": "RS256-0"}, exp=1, aud="s3cret")
    assert wrapper.has(forged) == f"the token in {wrapper.file} {NOT_THEIRS}"
    expired = " expired at 1970-01-01T00:00:01Z"
    assert problems(wrapper) == [f" {NOT_THEIRS}", f" is not for the audience {AUDIENCE}", expired]
    examined = wrapper.source.examine()
    assert (examined.identity, examined.is_verified) == (None, False)


def test_an_algorithm_that_is_not_allowed_is_reported_beside_the_problems_of_the_claims(wrapper: Wrapper) -> None:
    wrapper.has(unsigned({"alg": "none"}, claims(sub=None)))
    assert problems(wrapper) == [" is not signed with RS256", " names no subject"]


def test_keys_that_cannot_be_fetched_are_reported_beside_the_tokens_problem(wrapper: Wrapper) -> None:
    wrapper.jwks.unlink()
    source = TokenSource(wrapper.settings, CONFIGURED, {}, budget_ms=1, notify=print)
    keys = f"keys cannot be fetched from {wrapper.jwks}: No such file or directory"
    for content, why in (
        (None, f"there is no token: {wrapper.file} does not exist"),
        ("opaque", f"the token in {wrapper.file} {NOT_A_JWT}"),
        (unsigned({"alg": "none"}), f"the token in {wrapper.file} is not signed with RS256"),
    ):
        if content:
            wrapper.file.write_text(content)
        assert [problem.message for problem in source.examine().problems] == [why, keys]
    wrapper.file.write_text(token())
    assert [problem.message for problem in source.examine().problems] == [keys]


# Not a token


RS256 = part({"alg": "RS256"})
NO_TOKENS = [
    *(b"opaque-access-token", b"..", b"a.b.c.d.e", b"\xff\xfe\x00t\x00o", "tökén".encode(), b"\x00" * 100),
    *(f"{part(header)}.{part({})}.x".encode() for header in (b"[]", b"[" * 40_000)),
    *(f"{RS256}.{part(payload)}.".encode() for payload in (b"[]", b"{", b"9" * 5000, b"[" * 40_000)),
]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "is empty"),
        *((one, NOT_A_JWT) for one in NO_TOKENS),
        (bytes(1 << 20), f"is longer than {MAX_TOKEN_BYTES} bytes"),
    ],
    ids=range(14),
)
def test_a_text_that_is_not_a_jwt_is_rejected(wrapper: Wrapper, content: bytes, why: str) -> None:
    assert wrapper.has(content) == f"the token in {wrapper.file} {why}"


def test_line_ends_around_a_long_token_are_accepted_and_the_word_bearer_is_not(wrapper: Wrapper) -> None:
    assert wrapper.has(f"\n{token(groups=['group'] * 4000)}\r\n") == "alice"
    assert wrapper.has(f"Bearer {token()}") == f"the token in {wrapper.file} {NOT_A_JWT}"


def test_a_token_file_that_cannot_be_read_is_rejected_with_the_reason(wrapper: Wrapper) -> None:
    assert told(wrapper.source.begin()) == f"there is no token: {wrapper.file} does not exist"
    wrapper.file.mkdir()
    reason = "Permission denied" if sys.platform == "win32" else "Is a directory"
    assert wrapper.polls() == f"the token file {wrapper.file} cannot be read: {reason}"


@pytest.mark.posix
def test_a_pipe_in_place_of_a_token_file_is_rejected_with_the_reason(wrapper: Wrapper) -> None:
    os.mkfifo(wrapper.file)
    assert told(wrapper.source.begin()) == f"the token file {wrapper.file} cannot be read: not a regular file"


def test_without_a_token_file_in_the_settings_the_message_names_the_variable(tmp_path: Path) -> None:
    settings = Wrapper(tmp_path).settings
    bare = JwtSettings(settings.expected, settings.jwks, settings.algorithms, None, tmp_path)
    for text, found in (("", "there is no token: MCPGUARD_TOKEN is not set"), (token(), "alice")):
        source = TokenSource(bare, CONFIGURED, {"MCPGUARD_TOKEN": text}, budget_ms=1, notify=print)
        assert told(source.begin()) == found


def test_a_token_in_the_environment_takes_precedence_over_the_file(tmp_path: Path) -> None:
    both = Wrapper(tmp_path, MCPGUARD_TOKEN=token(sub="bob"))
    assert both.has(token()) == "bob"
    assert Wrapper(tmp_path, MCPGUARD_TOKEN="\udcff").has(token()) == f"the token in MCPGUARD_TOKEN {NOT_A_JWT}"


def test_the_hint_for_an_expired_token_depends_on_its_place(tmp_path: Path) -> None:
    filed = Wrapper(tmp_path)
    filed.has(token(exp=1))
    assert filed.source.examine().problems[0].hint == "get a new token; the next call uses it, without a restart"
    assert "restart the server" in Wrapper(tmp_path, MCPGUARD_TOKEN=token(exp=1)).source.examine().problems[0].hint


@given(st.one_of(st.binary(max_size=300), st.text(alphabet="ey.J-_=0", max_size=99).map(str.encode)))
def test_any_other_content_is_rejected_and_not_repeated(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    refusing = Wrapper(tmp_path_factory.mktemp("home"))
    message = refusing.has(content)
    assert message.startswith(f"the token in {refusing.file} is ")


@given(st.data())
def test_no_changed_character_leaves_a_token_acceptable(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    text = token(exp=4_000_000_000, iat=None)
    at = data.draw(st.integers(0, len(text) - 2))  # four bits of the last character are no part of the signature
    other = data.draw(st.sampled_from("AZaz09-_.= \x00é").filter(lambda char: char != text[at]))
    message = Wrapper(tmp_path_factory.mktemp("home")).has(text[:at] + other + text[at + 1 :])
    assert message != "alice"
    assert not any(piece in message for piece in text.split("."))
