"""A test identity provider: real keys, signed tokens, and a key server whose answers tests can change."""

import base64
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import get_default_algorithms

from tests import web_server
from tests.web_server import Answer, reply

ISSUER = "https://idp.acme.com/"
AUDIENCE = "crm-mcp"

DAY_S = 86_400
"""Longer than any run of the tests, so that a token expires only in a test that sets its expiry."""


@cache
def key(algorithm: str, number: int) -> Any:
    """The private key of an algorithm and a number. The same arguments give the same key."""
    del number
    if algorithm[:2] in {"RS", "PS"}:
        return rsa.generate_private_key(public_exponent=65537, key_size=2048)
    if algorithm == "EdDSA":
        return ed25519.Ed25519PrivateKey.generate()
    return ec.generate_private_key({"ES256": ec.SECP256R1(), "ES384": ec.SECP384R1(), "ES512": ec.SECP521R1()}[algorithm])


def jwk(algorithm: str = "RS256", number: int = 0, **members: object) -> dict[str, Any]:
    """The public key, as a provider publishes it."""
    text = get_default_algorithms()[algorithm].to_jwk(key(algorithm, number).public_key())
    return {**json.loads(text), "kid": f"{algorithm}-{number}", "use": "sig", "alg": algorithm, **members}


def key_set(*keys: dict[str, Any]) -> bytes:
    return json.dumps({"keys": keys}).encode()


def claims(**more: Any) -> dict[str, Any]:
    """The claims of a valid token. A claim with the value None is left out."""
    now_s = int(time.time())
    said = {"iss": ISSUER, "aud": AUDIENCE, "sub": "alice", "iat": now_s - DAY_S, "exp": now_s + DAY_S, **more}
    return {name: value for name, value in said.items() if value is not None}


def token(algorithm: str = "RS256", number: int = 0, headers: dict[str, Any] | None = None, **more: Any) -> str:
    headers = {"kid": f"{algorithm}-{number}", **(headers or {})}
    return jwt.encode(
        claims(**more), key(algorithm, number), algorithm, {name: v for name, v in headers.items() if v is not None}
    )


def part(value: object) -> str:
    """Encode a part of a token."""
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def settings(home: Path, jwks: str | Path, **more: object) -> Path:
    """Write a `config.toml` that verifies users by the token in the file `token` beside it. Returns the path of that file."""
    home.mkdir(exist_ok=True, parents=True)
    file = home / "token"
    values = {"issuer": ISSUER, "audience": AUDIENCE, "jwks": str(jwks), "token_file": str(file), **more}
    lines = [f"{name} = {json.dumps(value)}" for name, value in values.items() if value is not None]
    (home / "config.toml").write_text("\n".join(["[identity.jwt]", *lines, ""]))
    return file


def write_token(file: Path, text: str) -> None:
    """Replace the token file by a new private file, as a login tool does."""
    new = file.with_suffix(".new")
    new.write_text(text)
    new.chmod(0o600)
    new.replace(file)


class KeyServer:
    """Serves keys on this machine."""

    def __init__(self, server: ThreadingHTTPServer) -> None:
        self.url = f"http://127.0.0.1:{server.server_port}/jwks.json"
        self.server = server
        self.body, self.status = key_set(jwk()), 200  # of each answer
        self.headers: dict[str, str] = {}  # further ones of each answer
        self.behaviour: Answer | None = None  # if set, it answers instead
        self.asked = 0  # the number of requests
        self.ended = threading.Event()  # set when no more is answered

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        self.asked += 1
        if self.behaviour:
            self.behaviour(handler)
        else:
            reply(handler, self.status, self.headers, self.body)

    def pause(self) -> None:
        """Do not answer until the server is closed."""
        self.ended.wait()


@contextmanager
def serving() -> Iterator[KeyServer]:
    with web_server.serving(lambda handler: keys.answer(handler)) as server:
        keys = KeyServer(server)
        try:
            yield keys
        finally:
            keys.ended.set()
