"""Verifies the token that names the user, again whenever the token or the provider's keys change and when it expires."""

import contextlib
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence

import jwt

from mcpguard.errors import Unauthenticated
from mcpguard.files import FollowedFile
from mcpguard.identity import claims
from mcpguard.identity.caller import Identity
from mcpguard.identity.claims import Claims
from mcpguard.identity.jwt_settings import JwtSettings
from mcpguard.identity.keys import FETCH_S, REFRESH_S, ProviderKeys
from mcpguard.light_typing import Any, Final, NamedTuple

MAX_TOKEN_BYTES: Final = 64 * 1024
"""The longest token that is accepted. Tokens with hundreds of groups take about ten kilobytes."""

VARIABLE: Final = "MCPGUARD_TOKEN"

_NOT_A_JWT: Final = "get a JWT, which has three parts with dots between them: an opaque access token cannot be verified"


class Examination(NamedTuple):
    """The result of verifying a token.

    Attributes:
        problems: Every reason to reject the token; none if it is accepted.
        identity: The caller that the token names; None if it is rejected.
        claims: The token's claims, trusted only if `is_verified`; None if they cannot be read.
        is_verified: Whether a known key of the provider verifies the signature.
        lacks_key: Whether no known key verifies the signature, so that newer keys may.
        until_s: Until when the result holds while neither the token nor the keys change.
    """

    problems: tuple[Unauthenticated, ...]
    identity: Identity | None = None
    claims: Claims | None = None
    is_verified: bool = False
    lacks_key: bool = False
    until_s: float = float("inf")


class TokenSource:
    """The caller that the current token names.

    Args:
        settings: The places of the token and the keys, and the expected claims.
        configured: The caller's server and agent, as far as they are configured.
        environ: The environment. A token in it takes precedence over the file.
        budget_ms: How long a call waits for a fetch of keys.
        notify: Receives one line for each change of the caller, and for a token file that others can read.
        keys: The provider's keys; None for those of the settings.
        clock: Wall-clock time, in seconds.
    """

    def __init__(
        self,
        settings: JwtSettings,
        configured: Identity,
        environ: Mapping[str, str],
        *,
        budget_ms: int,
        notify: Callable[[str], None],
        keys: ProviderKeys | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.keys = ProviderKeys(settings.jwks, settings.state) if keys is None else keys
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
        self._keys_seen = self.keys.state
        self._examined = Examination(())
        self._examined_s = 0.0
        self._reported: Identity | tuple[str, str] | None = None

    @property
    def where(self) -> str:
        """The place of the token, for messages."""
        if self._token is not None:
            return VARIABLE
        return str(self._settings.token_file) if self._settings.token_file else "nowhere"

    def begin(self) -> Identity | Unauthenticated:
        """The caller now, or why the token names none."""
        found = _outcome(self.examine())
        self._reported = _comparable(found)
        return found

    def poll(self, *, for_call: bool = False) -> Identity | Unauthenticated | None:
        """The caller from now on, or why the token names none; None if that has not changed since the last `poll`.

        Without a change it costs one `stat` of the file and one look at a clock.

        Args:
            for_call: Whether a call waits for the result. Only then does it wait for a fetch of keys.
        """
        self._examine_changed()
        if self._examined.lacks_key:
            self.keys.seek()
            if for_call and self.keys.is_fetching:
                self.keys.wait(self._budget_s)
            self._examine_changed()
        found = _outcome(self._examined)
        if self._reported == _comparable(found):
            return None
        self._reported = _comparable(found)
        self._notify(f"user {found.user}, verified" if isinstance(found, Identity) else f"unauthenticated: {found.message}")
        return found

    def _examine_changed(self) -> None:
        has_new_token = self._file is not None and self._look(self._file)
        still_holds = self._examined_s <= self._clock() < self._examined.until_s  # it does not if the clock was set back
        if has_new_token or not still_holds or self.keys.state != self._keys_seen:
            self.examine()

    def _look(self, file: FollowedFile) -> bool:
        has_changed = file.look()
        if file.mode & 0o077 and not self._has_warned and sys.platform != "win32":
            self._has_warned = True
            self._notify(f"others can read the token in {self.where} (mode {file.mode:04o}): chmod 600 {self.where}")
        return has_changed

    def examine_patiently(self) -> Examination:
        """Verify the token. If its keys are not known, wait for them."""
        found = self.examine()
        for _ in range(2):  # the first fetch, and a second one if the token's key is not among the keys
            if self.keys.is_fetching:
                self.keys.wait(FETCH_S)
                found = self.examine()
        return found

    def examine(self) -> Examination:
        """Verify the token, and start to fetch keys if it needs newer ones."""
        now_s = self._examined_s = self._clock()
        self._keys_seen = self.keys.state
        content: bytes | str | None = self._token.encode(errors="replace") if self._token is not None else None
        if self._file is not None:
            self._look(self._file)
            content = self._file.content
        if now_s >= self.keys.stale_s:
            self.keys.seek()
        found = self._examine(content, now_s)
        if found.problems and not found.lacks_key and not len(self.keys):
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
            return Examination((Unauthenticated(f"{where} is empty", "log in, so that the token is written"),))
        try:
            header, payload = _read(token)
        except (jwt.InvalidTokenError, ValueError, RecursionError):  # its text can repeat the header
            return Examination((Unauthenticated(f"{where} is not a signed JWT", _NOT_A_JWT),))
        allowed, expected = self._settings.algorithms, self._settings.expected
        is_allowed = header.get("alg") in allowed
        if is_allowed:
            forged = self._signature_problem(token, header, where)
        else:
            hint = "sign with one of these, or change identity.jwt.algorithms"
            forged = Unauthenticated(f"{where} is not signed with {' or '.join(allowed)}", hint)
        renew = "get a new token; the next call uses it, without a restart"
        if self._token is not None:
            renew = f"get a new token and restart the server: {VARIABLE} is read only at the start"
        problems = tuple(claims.problems(payload, expected, where=where, renew=renew, now_s=now_s))
        until_s = now_s + REFRESH_S  # a token that is rejected now can become valid
        if forged or problems:
            lacks_key = is_allowed and forged is not None
            all_problems = (forged, *problems) if forged else problems
            return Examination(all_problems, None, payload, is_verified=not forged, lacks_key=lacks_key, until_s=until_s)
        expires_s = (claims.time_of(payload, "exp") or 0) + claims.LEEWAY_S
        until_s = min(expires_s, max(until_s, self.keys.stale_s))
        return Examination((), claims.identity(payload, expected, self._configured), payload, is_verified=True, until_s=until_s)

    def _missing(self, why: str | None) -> Unauthenticated:
        file = self._settings.token_file
        if file is None:
            hint = f"set {VARIABLE} where the client starts the server, or identity.jwt.token_file in config.toml"
            return Unauthenticated(f"there is no token: {VARIABLE} is not set", hint)
        if why is None:
            hint = f"log in, so that the file is written, or set {VARIABLE}; the next call uses the file, without a restart"
            return Unauthenticated(f"there is no token: {file} does not exist", hint)
        return Unauthenticated(f"the token file {file} cannot be read: {why}", "write the token and nothing else into the file")

    def _signature_problem(self, token: bytes, header: dict[str, Any], where: str) -> Unauthenticated | None:
        """Why none of the known keys verifies the signature; None if one does."""
        algorithm, kid = header["alg"], header.get("kid")
        if _is_signed(token, algorithm, self.keys.find(kid, algorithm)):
            return None
        self.keys.seek()  # the provider may have new keys, possibly with an old kid
        keys = self.keys.find(kid, algorithm)
        if _is_signed(token, algorithm, keys):
            return None
        if not len(self.keys):
            return self._no_keys()
        hint = "get a new token, or check identity.jwt.jwks; later calls fetch the keys again"
        what = f"is signed with a key that {self.keys.source} does not have"
        if keys:
            what = f"has a signature that is not {self._settings.expected.issuer}'s"
            hint = "get a new token: this one was changed, or somebody else signed it"
        if self.keys.is_fetching:
            return Unauthenticated(f"{where} {what}; newer keys are being fetched", "call again in a moment")
        if self.keys.problem:
            what += f"; newer keys cannot be fetched from {self.keys.source}: {self.keys.problem}"
        return Unauthenticated(f"{where} {what}", hint)

    def _no_keys(self) -> Unauthenticated:
        source = self.keys.source
        if self.keys.is_fetching:
            return Unauthenticated(f"keys are being fetched from {source}", "call again in a moment")
        hint = "check identity.jwt.jwks; later calls try again"
        return Unauthenticated(f"keys cannot be fetched from {source}: {self.keys.problem}", hint)


def _outcome(examined: Examination) -> Identity | Unauthenticated:
    return examined.identity or examined.problems[0]


def _comparable(found: Identity | Unauthenticated) -> Identity | tuple[str, str]:
    """A value that is equal for equal outcomes: exceptions compare by identity."""
    return (found.message, found.hint) if isinstance(found, Unauthenticated) else found


def _is_signed(token: bytes, algorithm: str, keys: Sequence[jwt.PyJWK]) -> bool:
    """Whether one of the keys verifies the signature."""
    for key in keys:
        with contextlib.suppress(Exception):  # any error means: not verified; its text can hold the token
            jwt.PyJWS(algorithms=[algorithm]).decode_complete(token, key, algorithms=[algorithm])
            return True
    return False


def _read(token: bytes) -> tuple[dict[str, Any], Claims]:
    """Parse a token's header and claims without verifying them.

    Raises:
        jwt.InvalidTokenError: This is not a JWT, or `kid` or `crit` in its header is not supported.
        ValueError: It holds what cannot be logged as JSON: NaN, Infinity or a lone surrogate.
        RecursionError: It is nested too deeply.
    """
    parsed = jwt.decode_complete(token, options={"verify_signature": False})
    header, payload = parsed["header"], parsed["payload"]
    json.dumps([header, payload], ensure_ascii=False, allow_nan=False).encode()
    return header, payload
