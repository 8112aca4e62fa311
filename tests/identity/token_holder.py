"""A provider of keys, and the token source of a wrapper, with a clock that the test moves."""

import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mcpguard.errors import Unauthenticated
from mcpguard.identity.caller import Identity
from mcpguard.identity.claims import Expected
from mcpguard.identity.jwt_settings import JwtSettings
from mcpguard.identity.keys import FETCH_S, ProviderKeys
from mcpguard.identity.token import TokenSource
from tests.end_to_end.host import until
from tests.provider import AUDIENCE, ISSUER, jwk, key_set

CONFIGURED = Identity("", "jwt", "crm")
URL = "https://idp.acme.com/keys?k=s3cret"


class Provider:
    """A provider, with a clock and answers that the test sets: one after another, then always the last."""

    def __init__(self, home: Path, *answers: bytes | Exception) -> None:
        self.home = home
        self.now_s = float(int(time.time()))  # whole, so that sums with tenths are the same each time
        self.answers: Sequence[bytes | Exception] = answers or [key_set(jwk())]
        self.asked = 0
        self.go_on = threading.Event()  # cleared, it keeps the provider from answering
        self.go_on.set()

    def fetch(self, url: str, timeout_s: float, max_bytes: int) -> bytes:
        assert (url, timeout_s, max_bytes) == (URL, FETCH_S, 1 << 20)
        self.asked += 1
        assert self.go_on.wait(30)
        answer = self.answers[min(self.asked, len(self.answers)) - 1]
        if isinstance(answer, Exception):
            raise answer
        return answer

    def load(self, place: str | Path = URL) -> ProviderKeys:
        """The keys, once they have come."""
        found = ProviderKeys(place, self.home / "state", clock=lambda: self.now_s, wall=lambda: self.now_s, fetch=self.fetch)
        found.wait(30)
        return found


class Wrapper(Provider):
    """The token source of a wrapper. The `published` keys are in a file, unless a provider at `URL` gives `answers`."""

    def __init__(
        self,
        home: Path,
        *published: dict[str, Any],
        answers: Sequence[bytes | Exception] = (),
        algorithms: tuple[str, ...] = ("RS256",),
        **environ: str,
    ) -> None:
        super().__init__(home, *answers)
        self.file = home / "token"
        self.jwks = home / "keys.json"
        self.jwks.write_bytes(key_set(*(published or (jwk(),))))
        self.settings = JwtSettings(Expected(ISSUER, (AUDIENCE,)), self.jwks, algorithms, self.file, home)
        self.lines: list[str] = []
        self.keys = self.load(URL if answers else self.jwks)
        how: dict[str, Any] = {"notify": self.lines.append, "keys": self.keys, "clock": lambda: self.now_s}
        self.source = TokenSource(self.settings, CONFIGURED, environ, budget_ms=30_000, **how)

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
