"""A token file and the token source of a wrapper, with a clock that the test moves."""

import time
from pathlib import Path
from typing import Any

from mcpguard.errors import Unauthenticated
from mcpguard.identity.caller import Identity
from mcpguard.identity.claims import Expected
from mcpguard.identity.jwt_settings import JwtSettings
from mcpguard.identity.keys import Keys
from mcpguard.identity.token import TokenSource
from tests.provider import AUDIENCE, ISSUER, jwk, key_set

CONFIGURED = Identity("", "jwt", "crm")


class Wrapper:
    """The token source of a wrapper, with a clock that the test moves."""

    def __init__(
        self, home: Path, *published: dict[str, Any], algorithms: tuple[str, ...] = ("RS256",), **environ: str
    ) -> None:
        self.home = home
        self.file = home / "token"
        self.jwks = home / "keys.json"
        self.jwks.write_bytes(key_set(*(published or (jwk(),))))
        self.settings = JwtSettings(Expected(ISSUER, (AUDIENCE,)), self.jwks, algorithms, self.file, home)
        self.now_s = time.time()
        self.lines: list[str] = []
        self.keys = Keys(self.jwks, home, clock=lambda: self.now_s, wall=lambda: self.now_s)
        self.source = TokenSource(
            self.settings,
            CONFIGURED,
            environ,
            budget_ms=250,
            notify=self.lines.append,
            keys=self.keys,
            clock=lambda: self.now_s,
        )

    def has(self, text: str | bytes) -> str:
        """Write a token to the file; return the user that it names, or why it is rejected."""
        data = text.encode() if isinstance(text, str) else text
        self.file.write_bytes(data)
        self.file.chmod(0o600)
        return told(self.source.begin())

    def polls(self) -> str:
        return told(self.source.poll(for_call=True))


def told(found: Identity | Unauthenticated | None) -> str:
    if isinstance(found, Unauthenticated):
        assert found.hint
        return found.message
    return found.user if found else "nothing new"
