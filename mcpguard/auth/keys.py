"""The provider's public keys: from its URL or a file, in memory and on disk, renewed off the calls' path."""

import base64
import contextlib
import json
import os
import threading
import time
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Final, Protocol

from mcpguard.auth.settings import JwtSettings, shown_url
from mcpguard.core.claims import time_of
from mcpguard.core.digest import blake2b
from mcpguard.files import private_folder, read_at_once
from mcpguard.followed_file import FollowedFile

REFRESH_S: Final = 30.0
"""Keys are asked for at most once in this time, whatever tokens name; the first load is not counted."""

FETCH_S: Final = 2.0
"""What one attempt may take in all."""

MAX_AGE_S: Final = 3600.0
"""Keys older than this are asked for again, beside the calls: the provider may have withdrawn one."""

FILE_AGE_S: Final = 60.0
"""The same for a file of keys."""

MAX_BYTES: Final = 1 << 20
"""A provider's keys take some kilobytes."""

_TOO_LATE: Final = f"no answer in {FETCH_S:g} s"
_MAX_KEYS: Final = 100
_MAX_TRIED: Final = 16
"""How many keys are tried for one signature. Providers publish two or three of a kind."""

_MIN_RSA_BITS: Final = 2048
"""NIST SP 800-131A; PyJWT warns below it."""

_MEMBERS: Final = {"RSA": ("n", "e"), "EC": ("crv", "x", "y"), "OKP": ("crv", "x")}
_FITTING: Final[dict[str, dict[str, tuple[str, ...]]]] = {
    "RS": {"kty": ("RSA",)},
    "PS": {"kty": ("RSA",)},
    "ES256": {"kty": ("EC",), "crv": ("P-256",)},
    "ES384": {"kty": ("EC",), "crv": ("P-384",)},
    "ES512": {"kty": ("EC",), "crv": ("P-521",)},
    "EdDSA": {"kty": ("OKP",), "crv": ("Ed25519", "Ed448")},
}

Jwk = dict[str, str]
"""A public key as RFC 7517 has it, without any member that is not needed to verify."""


class Keys(Protocol):
    """Keys of one provider. Nothing but `wait` waits for them.

    Attributes:
        source: The URL, without a query that may hold a secret, or the file.
        revision: Changes whenever the keys are renewed.
        problem: Why the last attempt to get them failed; empty if it did not.
        fetched_s: When they were got, in wall-clock time; None if there are none.
        stale_s: When `seek` should be called though no key is missing; a time in the past if their age is not known.
        is_fetching: Whether they are on their way.
    """

    source: str
    revision: int
    fetched_s: float | None

    @property
    def problem(self) -> str: ...  # noqa: D102
    @property
    def stale_s(self) -> float: ...  # noqa: D102
    @property
    def is_fetching(self) -> bool: ...  # noqa: D102

    def find(self, kid: str | None, algorithm: str) -> tuple[Jwk, ...]:
        """The keys that a token of this header may be signed with."""

    def has(self, kid: str) -> bool:
        """Whether there is a key of this name, whatever it is for."""

    def seek(self) -> None:
        """Get the newest keys, unless that was just tried. Does not wait for them."""

    def wait(self, timeout_s: float) -> None:
        """Wait until keys that are on their way are here, or will not come."""


def keys_of(settings: JwtSettings) -> Keys:
    """The keys that are configured."""
    if isinstance(settings.jwks, Path):
        return FileKeys(settings.jwks)
    return RemoteKeys(settings.jwks, settings.state)


def parse_keys(data: bytes) -> tuple[Jwk, ...]:
    """The public keys of a set that can verify signatures.

    Raises:
        ValueError: This is no key set, or there is no such key in it; the text says which.
    """
    try:
        entries = json.loads(data)["keys"]
        keys = [key for entry in entries[:_MAX_KEYS] if (key := _public(entry))]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError("this is not a key set") from error
    if not keys:
        raise ValueError("there is no key in it that verifies signatures")
    return tuple(keys)


def _public(entry: object) -> Jwk | None:
    """What of a key is public; None if it is not for signatures, or too weak."""
    if not isinstance(entry, dict) or entry.get("use", "sig") != "sig":
        return None
    operations = entry.get("key_ops", ["verify"])
    if not isinstance(operations, list) or "verify" not in operations:
        return None
    members = _MEMBERS.get(str(entry.get("kty")), ())
    key = {name: entry[name] for name in ("kty", *members, "kid", "alg") if isinstance(entry.get(name), str)}
    if not members or not all(key.get(name) for name in members):
        return None
    if key["kty"] == "RSA":
        with contextlib.suppress(ValueError):
            if int.from_bytes(base64.urlsafe_b64decode(key["n"] + "==")).bit_length() >= _MIN_RSA_BITS:
                return key
        return None
    return key


def find(keys: Sequence[Jwk], kid: str | None, algorithm: str) -> tuple[Jwk, ...]:
    """The keys for a token of this header: of those that fit its algorithm all that have its name, or all if it names none."""
    fits = _FITTING.get(algorithm) or _FITTING[algorithm[:2]]
    fitting = (
        key
        for key in keys
        if kid in (None, key.get("kid"))
        and key.get("alg", algorithm) == algorithm
        and all(key[name] in values for name, values in fits.items())
    )
    return tuple(islice(fitting, _MAX_TRIED))


def _stale_s(got_s: float | None, age_s: float, now_s: float) -> float:
    """When what was got becomes too old. A time in the future tells no age: the clock was set back since."""
    return 0.0 if got_s is None or got_s > now_s else got_s + age_s


class _Known:
    """Looks for keys among those that are here."""

    _keys: tuple[Jwk, ...] = ()

    def find(self, kid: str | None, algorithm: str) -> tuple[Jwk, ...]:
        """See `Keys`."""
        return find(self._keys, kid, algorithm)

    def has(self, kid: str) -> bool:
        """See `Keys`."""
        return any(key.get("kid") == kid for key in self._keys)


class FileKeys(_Known):
    """Keys in a file that others write."""

    is_fetching = False

    def __init__(self, path: Path, *, wall: Callable[[], float] = time.time) -> None:
        self.source = str(path)
        self.revision = 0
        self.problem = ""
        self.fetched_s: float | None = None
        self._wall = wall
        self._looked_s: float | None = None
        self._file = FollowedFile(path, max_bytes=MAX_BYTES)
        self.seek()

    @property
    def stale_s(self) -> float:
        """See `Keys`."""
        return _stale_s(self._looked_s, FILE_AGE_S, self._wall())

    def seek(self) -> None:
        """See `Keys`. A file that breaks leaves the last good keys."""
        self._looked_s = self._wall()
        before = self._file.content
        first = not self._keys and not self.problem
        if not (self._file.look() and self._file.content != before) and not first:
            return
        content = self._file.content
        if not isinstance(content, bytes):
            self.problem = content or "no such file"
            return
        try:
            self._keys = parse_keys(content)
        except ValueError as error:
            self.problem = str(error)
            return
        self.problem = ""
        self.fetched_s = self._wall()
        self.revision += 1

    def wait(self, timeout_s: float) -> None:
        """See `Keys`."""


class RemoteKeys(_Known):
    """Keys at a URL. What was got last is kept on disk, so that a provider that is down stops nobody whose key is known.

    Args:
        url: Where they are.
        state: The folder in which they are kept.
        clock: A monotone clock, in seconds.
        wall: Wall-clock time.
        fetch: Gets a URL's document of at most some bytes within some seconds; None for `fetch.get`.
    """

    def __init__(
        self,
        url: str,
        state: Path,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        fetch: Callable[[str, float, int], bytes] | None = None,
    ) -> None:
        self.source = shown_url(url)
        self._url = url
        self.revision = 0
        self.fetched_s: float | None = None
        self._clock = clock
        self._wall = wall
        self._fetch = fetch
        self._kept = state / f"jwks-{blake2b(url.encode(), digest_size=12).hexdigest()}.json"
        self._problem = ""
        self._idle = threading.Event()  # set while no attempt is under way
        self._idle.set()
        self._give_up_s = 0.0
        self._next_s: float | None = None  # when a key that is missing may be asked for again
        self._read_kept()
        if not self._keys:
            self._begin()

    @property
    def problem(self) -> str:
        """See `Keys`."""
        return _TOO_LATE if self._is_overdue else self._problem

    @property
    def stale_s(self) -> float:
        """See `Keys`."""
        return _stale_s(self.fetched_s, MAX_AGE_S, self._wall())

    @property
    def is_fetching(self) -> bool:
        """See `Keys`."""
        return not self._idle.is_set() and not self._is_overdue

    @property
    def _is_overdue(self) -> bool:
        return not self._idle.is_set() and self._clock() >= self._give_up_s

    def seek(self) -> None:
        """See `Keys`."""
        now_s = self._clock()
        if self._idle.is_set() and (self._next_s is None or now_s >= self._next_s):
            self._next_s = now_s + REFRESH_S
            self._begin()

    def wait(self, timeout_s: float) -> None:
        """See `Keys`."""
        self._idle.wait(max(0.0, min(timeout_s, self._give_up_s - self._clock())))

    def _begin(self) -> None:
        self._give_up_s = self._clock() + FETCH_S
        self._idle.clear()
        threading.Thread(target=self._renew, name="mcpguard-keys", daemon=True).start()

    def _renew(self) -> None:
        try:
            from mcpguard.auth import fetch  # TLS and HTTP are loaded when keys have to be fetched, and in this thread

            keys = parse_keys((self._fetch or fetch.get)(self._url, FETCH_S, MAX_BYTES))
            if self._clock() >= self._give_up_s:
                raise TimeoutError
            self._keys, self._problem, self.fetched_s = keys, "", self._wall()
            self.revision += 1
            self._keep()
        except TimeoutError:
            self._problem = _TOO_LATE
        except ValueError as error:
            self._problem = str(error)
        except Exception as error:  # whoever waits must not do so for ever
            self._problem = f"internal error, please report it: {type(error).__name__}"  # its text may hold the URL's secret
        finally:
            self._idle.set()

    def _read_kept(self) -> None:
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError, RecursionError):
            kept = json.loads(read_at_once(self._kept, MAX_BYTES))
            if kept["url"] == self.source and (fetched_s := time_of(kept, "fetched_s")):
                self._keys = parse_keys(json.dumps(kept).encode())
                self.fetched_s = fetched_s

    def _keep(self) -> None:
        """Write the keys for the next start. If that fails it will ask the provider, as this one did."""
        kept = json.dumps({"url": self.source, "fetched_s": self.fetched_s, "keys": self._keys}).encode()
        new = self._kept.with_suffix(f".{os.getpid()}.new")
        with contextlib.suppress(OSError):
            private_folder(self._kept.parent)
            fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with open(fd, "wb") as file:  # noqa: PTH123 - a descriptor
                file.write(kept)
            new.replace(self._kept)
