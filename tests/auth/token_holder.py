"""A token's file and what a wrapper makes of it, with a clock that moves when it is told to."""

import time
from pathlib import Path
from typing import Any

from mcpguard.auth.keys import FileKeys
from mcpguard.auth.settings import JwtSettings
from mcpguard.auth.token import TokenSource
from mcpguard.core.claims import Expected
from mcpguard.core.identity import Identity
from mcpguard.errors import Unauthenticated
from tests.provider import AUDIENCE, ISSUER, jwk, key_set

CONFIGURED = Identity("", "jwt", "crm")


class Wrapper:
    """A token source as a wrapper has it, with a clock that moves when it is told to."""

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
        self.keys = FileKeys(self.jwks, wall=lambda: self.now_s)
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
        """Who a token in the file is, or why it is nobody."""
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
