"""Verifies the token that names the user, and follows it while it is renewed, expires, and its provider changes keys."""

import json
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

import jwt

from mcpguard.core import claims
from mcpguard.core.claims import Claims
from mcpguard.core.identity import Identity
from mcpguard.errors import Unauthenticated
from mcpguard.followed_file import FollowedFile
from mcpguard.jwks import REFRESH_S, Keys, keys_of
from mcpguard.jwt_settings import JwtSettings

MAX_TOKEN_BYTES: Final = 64 * 1024
"""Tokens with hundreds of groups take some ten kilobytes; what is longer is something else."""

VARIABLE: Final = "MCPGUARD_TOKEN"

_NOT_A_JWT: Final = "a JWT has three parts with dots between them; an opaque access token cannot be verified"


class Examination(NamedTuple):
    """What came of looking at a token.

    Attributes:
        problems: Every reason why it names nobody; none if it does.
        identity: Whom it names, if it has no problem.
        claims: What it says, to be believed only if `is_verified`; None if it cannot be read.
        is_verified: Whether its signature is one of the provider's.
        lacks_key: Whether its key is not known, which may change at any time.
        until_s: Until when this holds if neither the token nor the keys change.
    """

    problems: tuple[Unauthenticated, ...]
    identity: Identity | None = None
    claims: Claims | None = None
    is_verified: bool = False
    lacks_key: bool = False
    until_s: float = float("inf")


class TokenSource:
    """Who is calling by the token, as it and the keys change.

    Args:
        settings: Where the token and the keys are, and what is expected.
        configured: Who is calling apart from the user: the server, and parts of the agent.
        environ: The environment; a token in it comes before the file.
        budget_ms: How long a call waits for keys that are being fetched.
        notify: Gets a line at each change, and about a file that others can read.
        keys: The provider's; None for those that the settings name.
        clock: Wall-clock time in seconds.
    """

    def __init__(
        self,
        settings: JwtSettings,
        configured: Identity,
        environ: Mapping[str, str],
        *,
        budget_ms: int,
        notify: Callable[[str], None],
        keys: Keys | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.keys = keys_of(settings) if keys is None else keys
        self._settings = settings
        self._configured = configured
        self._budget_s = budget_ms / 1000
        self._notify = notify
        self._clock = clock
        self._token = environ.get(VARIABLE) or None
        self._file: FollowedFile | None = None
        if settings.token_file and self._token is None:
            self._file = FollowedFile(settings.token_file, max_bytes=MAX_TOKEN_BYTES)
        self._mode = 0o600
        self._revision = -1
        self._examined = Examination(())
        self._told: Identity | tuple[str, str] | None = None

    @property
    def where(self) -> str:
        """Where the token is, for people."""
        if self._token is not None:
            return VARIABLE
        return str(self._settings.token_file) if self._settings.token_file else "nowhere"

    @property
    def _renewal(self) -> str:
        if self._token is not None:
            return f"get a new token and start the server anew: {VARIABLE} is read at the start"
        return "get a new token; it counts from the next call on, without a restart"

    def begin(self) -> Identity | Unauthenticated:
        """Who is calling now, or why that is not known."""
        found = _outcome(self.examine())
        self._told = _mark(found)
        return found

    def poll(self, *, for_call: bool = False) -> Identity | Unauthenticated | None:
        """What is new since the last look; usually None, for the price of a look at the file's time and a clock.

        Args:
            for_call: Whether a call is to be judged by it: then keys that are being fetched are waited for.
        """
        if not self._may_have_changed():
            return None
        examined = self.examine()
        if examined.lacks_key and self.keys.is_fetching and for_call:
            self.keys.wait(self._budget_s)
            examined = self.examine()
        found = _outcome(examined)
        if self._told == _mark(found):
            return None
        self._told = _mark(found)
        self._notify(f"user {found.user}, verified" if isinstance(found, Identity) else f"unauthenticated: {found.message}")
        return found

    def _may_have_changed(self) -> bool:
        if self._file is not None:
            before = self._file.content
            if self._file.look() and self._file.content != before:
                return True
        examined = self._examined
        return examined.lacks_key or self._clock() >= examined.until_s or self.keys.revision != self._revision

    def examine(self) -> Examination:
        """Look at the token, and ask for keys that it needs."""
        now_s = self._clock()
        self._revision = self.keys.revision
        content: bytes | str | None = self._token.encode(errors="replace") if self._token is not None else None
        if self._file is not None:
            self._file.look()
            self._warn_of(self._file.mode)
            content = self._file.content
        if now_s >= self.keys.stale_s:
            self.keys.seek()
        self._examined = self._examine(content, now_s)
        return self._examined

    def _examine(self, content: bytes | str | None, now_s: float) -> Examination:
        where = f"the token in {self.where}"
        if not isinstance(content, bytes):
            return Examination((self._missing(content),))
        if len(content) > MAX_TOKEN_BYTES:
            return Examination((Unauthenticated(f"{where} is longer than {MAX_TOKEN_BYTES} bytes", _NOT_A_JWT),))
        token = content.strip()
        if not token:
            return Examination((Unauthenticated(f"{where} is empty", "log in, so that there is one"),))
        try:
            header, said = _read(token)
        except ValueError:
            return Examination((Unauthenticated(f"{where} is not a signed JWT", _NOT_A_JWT),))
        signature, lacks_key = self._signature_problem(token, header, where)
        problems = tuple(claims.problems(said, self._settings.expected, where=where, renew=self._renewal, now_s=now_s))
        stale_s = self.keys.stale_s if self.keys.stale_s > now_s else now_s + REFRESH_S
        if signature or problems:
            every = (signature, *problems) if signature else problems
            return Examination(every, None, said, signature is None, lacks_key, min(_begins_s(said, now_s), stale_s))
        until_s = min((claims.time_of(said, "exp") or 0) + claims.LEEWAY_S, stale_s)
        who = claims.identity(said, self._settings.expected, self._configured)
        return Examination((), who, said, is_verified=True, until_s=until_s)

    def _missing(self, why: str | None) -> Unauthenticated:
        file = self._settings.token_file
        if file is None:
            hint = f"set {VARIABLE} where the client starts the server, or identity.jwt.token_file in config.toml"
            return Unauthenticated(f"there is no token: {VARIABLE} is not set", hint)
        if why is None:
            hint = f"log in, so that it is written (or set {VARIABLE}); it counts from the next call on, without a restart"
            return Unauthenticated(f"there is no token: {file} does not exist", hint)
        return Unauthenticated(
            f"the token file {file} cannot be read: {why}", "it is a file that holds the token and nothing else"
        )

    def _signature_problem(self, token: bytes, header: dict[str, Any], where: str) -> tuple[Unauthenticated | None, bool]:
        """Why the signature is not one of the provider's, and whether that is because its key is not known."""
        algorithm, kid = header.get("alg"), header.get("kid")
        if algorithm not in self._settings.algorithms:
            hint = "sign with one of these, or mend identity.jwt.algorithms"
            return Unauthenticated(f"{where} is not signed with {' or '.join(self._settings.algorithms)}", hint), False
        key = self.keys.find(kid, algorithm)
        if key is None:
            self.keys.seek()
            key = self.keys.find(kid, algorithm)
        if key is None:
            return self._no_key(where), True
        try:
            jwt.PyJWS(algorithms=[algorithm]).decode_complete(token, jwt.PyJWK(dict(key), algorithm), algorithms=[algorithm])
        except Exception:  # whatever a library makes of it: not verified, and what it says of it may hold parts of the token
            hint = "it was changed, or signed by somebody else; get a new one"
            return Unauthenticated(f"{where} has a signature that is not {self._settings.expected.issuer}'s", hint), False
        return None, False

    def _no_key(self, where: str) -> Unauthenticated:
        source = self.keys.source
        if self.keys.is_fetching:
            return Unauthenticated(f"keys are being fetched from {source}", "call again in a moment")
        if self.keys.problem:
            hint = "check identity.jwt.jwks; it is tried again with the next calls"
            return Unauthenticated(f"keys cannot be had from {source}: {self.keys.problem}", hint)
        hint = "get a new token, or check identity.jwt.jwks; it is asked again with the next calls"
        return Unauthenticated(f"{where} is signed with a key that {source} does not have", hint)

    def _warn_of(self, mode: int) -> None:
        if mode & 0o077 and mode != self._mode and sys.platform != "win32":
            self._notify(f"others can read the token in {self.where} (mode {mode:04o}): chmod 600 {self.where}")
        self._mode = mode


def _outcome(examined: Examination) -> Identity | Unauthenticated:
    return examined.identity or examined.problems[0]


def _mark(found: Identity | Unauthenticated) -> Identity | tuple[str, str]:
    return (found.message, found.hint) if isinstance(found, Unauthenticated) else found


def _read(token: bytes) -> tuple[dict[str, Any], Claims]:
    """A token's header and claims, of which nothing is verified.

    Raises:
        ValueError: This is not a signed JWT.
    """
    try:
        parts = jwt.PyJWS().decode_complete(token, options={"verify_signature": False})
        said = json.loads(parts["payload"])
    except (jwt.PyJWTError, ValueError, TypeError, RecursionError) as error:
        raise ValueError("not a JWT") from error
    header: dict[str, Any] = parts["header"]
    knows_all = "crit" not in header  # an extension that must be understood (RFC 7515, section 4.1.11)
    if not (isinstance(said, dict) and knows_all and isinstance(header.get("kid"), str | None)):
        raise ValueError("not a JWT that is known here")
    return header, said


def _begins_s(said: Claims, now_s: float) -> float:
    """When a token that is not accepted may become so: one of the future does by itself."""
    times = [time_s for name in ("nbf", "iat") if (time_s := claims.time_of(said, name)) is not None]
    begin_s = max(times, default=0.0) - claims.LEEWAY_S
    return begin_s if begin_s > now_s else float("inf")
