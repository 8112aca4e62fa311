"""A token file and the token source of a wrapper, with a clock that the test moves."""

import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mcpguard.errors import Unauthenticated
from mcpguard.identity.caller import Identity
from mcpguard.identity.claims import Expected
from mcpguard.identity.jwt_settings import JwtSettings
from mcpguard.identity.keys import ProviderKeys
from mcpguard.identity.token import TokenSource
from tests.end_to_end.host import until
from tests.provider import AUDIENCE, ISSUER, jwk, key_set

CONFIGURED = Identity("", "jwt", "crm")
URL = "https://idp.acme.com/keys?k=s3cret"


class Wrapper:
    """The token source of a wrapper, with a clock that the test moves.

    The `published` keys are in a file, unless a provider at `URL` gives `answers`, one after another; then always the last.
    """

    def __init__(
        self,
        home: Path,
        *published: dict[str, Any],
        answers: Sequence[bytes | Exception] = (),
        algorithms: tuple[str, ...] = ("RS256",),
        **environ: str,
    ) -> None:
        self.home = home
        self.file = home / "token"
        self.jwks = home / "keys.json"
        self.jwks.write_bytes(key_set(*(published or (jwk(),))))
        self.settings = JwtSettings(Expected(ISSUER, (AUDIENCE,)), self.jwks, algorithms, self.file, home)
        self.now_s = time.time()
        self.lines: list[str] = []
        self.asked = 0
        self.go_on = threading.Event()  # cleared, it keeps the provider from answering
        self.go_on.set()
        self._answers = answers
        place = URL if answers else self.jwks
        self.keys = ProviderKeys(place, home, clock=lambda: self.now_s, wall=lambda: self.now_s, fetch=self._fetch)
        self.keys.wait(30)
        how: dict[str, Any] = {"notify": self.lines.append, "keys": self.keys, "clock": lambda: self.now_s}
        self.source = TokenSource(self.settings, CONFIGURED, environ, budget_ms=30_000, **how)

    def _fetch(self, *_: object) -> bytes:
        self.asked += 1
        assert self.go_on.wait(30)
        answer = self._answers[min(self.asked, len(self._answers)) - 1]
        if isinstance(answer, Exception):
            raise answer
        return answer

    def has(self, text: str | bytes) -> str:
        """Write a token to the file; return the user that it names, or why it is rejected."""
        data = text.encode() if isinstance(text, str) else text
        self.file.write_bytes(data)
        self.file.chmod(0o600)
        return told(self.source.begin())

    def polls(self) -> str:
        found = told(self.source.poll(for_call=True))
        until(lambda: not self.keys.is_fetching, "the end of a fetch")
        return found


def told(found: Identity | Unauthenticated | None) -> str:
    if isinstance(found, Unauthenticated):
        assert found.hint
        return found.message
    return found.user if found else "nothing new"
