"""Verifies the token that names the user, and follows it while it is renewed, expires, and its provider changes keys."""

import contextlib
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import jwt

from mcpguard.auth.keys import REFRESH_S, Jwk, Keys, keys_of
from mcpguard.auth.settings import JwtSettings
from mcpguard.core import claims
from mcpguard.core.claims import Claims
from mcpguard.core.identity import Identity
from mcpguard.errors import Unauthenticated
from mcpguard.followed_file import FollowedFile

MAX_TOKEN_BYTES: Final = 64 * 1024
"""Tokens with hundreds of groups take some ten kilobytes; what is longer is something else."""

VARIABLE: Final = "MCPGUARD_TOKEN"

_NOT_A_JWT: Final = "a JWT has three parts with dots between them; an opaque access token cannot be verified"


class Examination(NamedTuple):
    """What came of looking at a token.

    Attributes:
        problems: Every reason why it names nobody; none if it names somebody.
        identity: Whom it names, if it has no problem.
        claims: What it says, to be believed only if `is_verified`; None if it cannot be read.
        is_verified: Whether its signature is one of the provider's.
        lacks_key: Whether none of the known keys made its signature. A new key may have.
        until_s: The time until which this holds, if neither the token nor the keys change.
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
        self._has_warned = False
        self._keys_seen = -1, "", False
        self._examined = Examination(())
        self._examined_s = 0.0
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
        """Who calls from now on, or why nobody does, if that has changed since the last look; else None.

        Where nothing has changed it costs a look at the file's time and one at a clock.

        Args:
            for_call: Whether a call is to be judged by it: then keys that are being fetched are waited for.
        """
        changed = self._may_have_changed()
        if changed:
            self.examine()
        if self._examined.lacks_key:
            self.keys.seek()
            if self.keys.is_fetching and for_call:
                self.keys.wait(self._budget_s)
            if self._state_of_keys() != self._keys_seen:
                changed = True
                self.examine()
        if not changed:
            return None
        found = _outcome(self._examined)
        if self._told == _mark(found):
            return None
        self._told = _mark(found)
        self._notify(f"user {found.user}, verified" if isinstance(found, Identity) else f"unauthenticated: {found.message}")
        return found

    def _may_have_changed(self) -> bool:
        if self._file is not None:
            before = self._file.content
            if self._look(self._file) and self._file.content != before:
                return True
        still_holds = self._examined_s <= self._clock() < self._examined.until_s  # not so either if the clock was set back
        return not still_holds or self.keys.revision != self._keys_seen[0]

    def _state_of_keys(self) -> tuple[int, str, bool]:
        return self.keys.revision, self.keys.problem, self.keys.is_fetching

    def _look(self, file: FollowedFile) -> bool:
        was_read = file.look()
        if file.mode & 0o077 and not self._has_warned and sys.platform != "win32":
            self._has_warned = True
            self._notify(f"others can read the token in {self.where} (mode {file.mode:04o}): chmod 600 {self.where}")
        return was_read

    def examine(self) -> Examination:
        """Look at the token, and ask for keys that it needs."""
        now_s = self._examined_s = self._clock()
        self._keys_seen = self._state_of_keys()
        content: bytes | str | None = self._token.encode(errors="replace") if self._token is not None else None
        if self._file is not None:
            self._look(self._file)
            content = self._file.content
        if now_s >= self.keys.stale_s:
            self.keys.seek()
        found = self._examine(content, now_s)
        if found.problems and not found.lacks_key and self.keys.fetched_s is None:
            found = found._replace(problems=(*found.problems, self._no_keys()))
        self._examined = found
        return found

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
        except (jwt.DecodeError, ValueError, RecursionError):
            return Examination((Unauthenticated(f"{where} is not a signed JWT", _NOT_A_JWT),))
        except jwt.InvalidTokenError:  # its text may hold what the header says
            hint = "get a token whose kid is text, and without critical extensions"
            return Examination((Unauthenticated(f"{where} has an unsupported kid or crit in its header", hint),))
        allowed = self._settings.algorithms
        is_allowed = header.get("alg") in allowed
        if is_allowed:
            forged = self._signature_problem(token, header, where)
        else:
            hint = "sign with one of these, or change identity.jwt.algorithms"
            forged = Unauthenticated(f"{where} is not signed with {' or '.join(allowed)}", hint)
        problems = tuple(claims.problems(said, self._settings.expected, where=where, renew=self._renewal, now_s=now_s))
        stale_s = self.keys.stale_s if self.keys.stale_s > now_s else now_s + REFRESH_S
        if forged or problems:
            return Examination(
                (forged, *problems) if forged else problems,
                claims=said,
                is_verified=not forged,
                lacks_key=is_allowed and forged is not None,
                until_s=min(_begins_s(said, now_s), stale_s),
            )
        until_s = min((claims.time_of(said, "exp") or 0) + claims.LEEWAY_S, stale_s)
        who = claims.identity(said, self._settings.expected, self._configured)
        return Examination((), identity=who, claims=said, is_verified=True, until_s=until_s)

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

    def _signature_problem(self, token: bytes, header: dict[str, Any], where: str) -> Unauthenticated | None:
        """Why the signature is not one of the provider's, as far as its keys are known."""
        algorithm, kid = header["alg"], header.get("kid")
        keys = self.keys.find(kid, algorithm)
        if _is_signed(token, algorithm, keys):
            return None
        self.keys.seek()  # a provider may have new keys, be it under an old name
        before, keys = keys, self.keys.find(kid, algorithm)
        if keys != before and _is_signed(token, algorithm, keys):
            return None
        if self.keys.fetched_s is None:
            return self._no_keys()
        hint = "get a new token, or check identity.jwt.jwks; it is asked again with the next calls"
        if keys:
            what = f"has a signature that is not {self._settings.expected.issuer}'s"
            hint = "it was changed, or signed by somebody else; get a new one"
        elif kid is None:
            what = f"names no key, and {self.keys.source} has none for {algorithm}"
        elif self.keys.has(kid):
            what = f"is signed with {algorithm}, which the key that it names is not for"
        else:
            what = f"is signed with a key that {self.keys.source} does not have"
        if self._are_coming():
            return Unauthenticated(f"{where} {what} as far as is known: newer keys are being fetched", "call again in a moment")
        if self.keys.problem:
            what += f" as far as is known: newer keys cannot be had from {self.keys.source}: {self.keys.problem}"
        return Unauthenticated(f"{where} {what}", hint)

    def _are_coming(self) -> bool:
        """Whether keys are being fetched. What is told of that holds until they are here or will not come."""
        is_fetching = self.keys.is_fetching
        if is_fetching:  # it may have begun since the look at the keys, and may end as the last attempt did
            self._keys_seen = (*self._keys_seen[:2], True)
        return is_fetching

    def _no_keys(self) -> Unauthenticated:
        source = self.keys.source
        if self._are_coming():
            return Unauthenticated(f"keys are being fetched from {source}", "call again in a moment")
        hint = "check identity.jwt.jwks; it is tried again with the next calls"
        return Unauthenticated(f"keys cannot be had from {source}: {self.keys.problem}", hint)


def _outcome(examined: Examination) -> Identity | Unauthenticated:
    return examined.identity or examined.problems[0]


def _mark(found: Identity | Unauthenticated) -> Identity | tuple[str, str]:
    return (found.message, found.hint) if isinstance(found, Unauthenticated) else found


def _is_signed(token: bytes, algorithm: str, keys: Sequence[Jwk]) -> bool:
    """Whether one of the keys made the signature."""
    for key in keys:
        with contextlib.suppress(Exception):  # whatever a library makes of it: not verified, and its text may hold the token
            jwt.PyJWS(algorithms=[algorithm]).decode_complete(token, jwt.PyJWK(dict(key), algorithm), algorithms=[algorithm])
            return True
    return False


def _read(token: bytes) -> tuple[dict[str, Any], Claims]:
    """A token's header and claims, of which nothing is verified.

    Raises:
        jwt.InvalidTokenError: `kid` or `crit` in the header is not supported; a `DecodeError` if this is not a JWT at all.
        ValueError: It holds what cannot be logged as JSON: NaN, Infinity or a lone surrogate.
        RecursionError: It is nested too deeply.
    """
    parsed = jwt.decode_complete(token, options={"verify_signature": False})
    header, said = parsed["header"], parsed["payload"]
    json.dumps([header, said], ensure_ascii=False, allow_nan=False).encode()
    return header, said


def _begins_s(said: Claims, now_s: float) -> float:
    """When a token that is refused now may be accepted as it is: once its time has come. Never, if that is past."""
    times = [time_s for name in ("nbf", "iat") if (time_s := claims.time_of(said, name)) is not None]
    begin_s = max(times, default=0.0) - claims.LEEWAY_S
    return begin_s if begin_s > now_s else float("inf")
