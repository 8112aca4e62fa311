"""The provider's public keys: from a URL or a file, cached in memory and on disk, refreshed in the background."""

import base64
import contextlib
import json
import threading
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Final

from mcpguard.files import private_folder, read_at_once
from mcpguard.followed_file import FollowedFile
from mcpguard.identity.claims import time_of
from mcpguard.identity.jwt_settings import JwtSettings, shown_url
from mcpguard.text.digest import blake2b
from mcpguard.whole_files import replace

REFRESH_S: Final = 30.0
"""The shortest time between two fetches, whatever keys the tokens name. The first fetch of a process does not count."""

FETCH_S: Final = 2.0
"""The timeout of one fetch."""

MAX_AGE_S: Final = 3600.0
"""Keys older than this are fetched again in the background: the provider may have withdrawn one."""

FILE_AGE_S: Final = 60.0
"""A file of keys is read again after this time."""

MAX_BYTES: Final = 1 << 20
"""The largest key set that is accepted. Those of providers take some kilobytes."""

_MAX_KEYS: Final = 100
_MAX_TRIED: Final = 16
"""How many keys are tried for one signature. Providers publish two or three keys for an algorithm."""

_MIN_RSA_BITS: Final = 2048
"""Weaker keys are ignored. Source: NIST SP 800-131A. PyJWT warns of them."""

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
"""A public key in the form of RFC 7517, reduced to the members that are needed to verify."""


def keys_of(settings: JwtSettings) -> "Keys":
    """The configured source of keys."""
    if isinstance(settings.jwks, Path):
        return FileKeys(settings.jwks)
    return RemoteKeys(settings.jwks, settings.state)


def parse_keys(data: bytes) -> tuple[Jwk, ...]:
    """The keys of a JWK set that can verify signatures.

    Raises:
        ValueError: The data is not a key set, or has no such key. The text says which.
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
    """The public members of a key; None if the key is not for signatures, or is too weak."""
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


class Keys:
    """The keys of one provider. Only `wait` blocks.

    Args:
        source: The file or the URL, without its query, which can hold a secret.
        max_age_s: See `stale_s`.
        wall: Wall-clock time, in seconds.

    Attributes:
        revision: Changes whenever new keys are in use.
        fetched_s: When the keys were fetched, in wall-clock time; None if there are none.
    """

    def __init__(self, source: str, max_age_s: float, wall: Callable[[], float]) -> None:
        self.source = source
        self.revision = 0
        self.fetched_s: float | None = None
        self._max_age_s = max_age_s
        self._wall = wall
        self._keys: tuple[Jwk, ...] = ()
        self._problem = ""
        self._looked_s: float | None = None

    def __len__(self) -> int:
        return len(self._keys)

    @property
    def problem(self) -> str:
        """Why the last fetch failed; empty if it succeeded."""
        return self._problem

    @property
    def is_fetching(self) -> bool:
        """Whether a fetch is in progress."""
        return False

    @property
    def stale_s(self) -> float:
        """When to call `seek` even if no key is missing. In the past if the age of the keys is unknown."""
        looked_s = self._looked_s
        # If the keys come from the future, the clock was set back
        return 0.0 if looked_s is None or looked_s > self._wall() else looked_s + self._max_age_s

    def find(self, kid: str | None, algorithm: str) -> tuple[Jwk, ...]:
        """The keys that can verify a token with this `kid` and `alg`; without a `kid`, all that fit the algorithm."""
        fits = _FITTING.get(algorithm) or _FITTING[algorithm[:2]]
        fitting = (
            key
            for key in self._keys
            if kid in (None, key.get("kid"))
            and key.get("alg", algorithm) == algorithm
            and all(key[name] in values for name, values in fits.items())
        )
        return tuple(islice(fitting, _MAX_TRIED))

    def has(self, kid: str) -> bool:
        """Whether there is a key with this `kid`, for any algorithm."""
        return any(key.get("kid") == kid for key in self._keys)

    def seek(self) -> None:
        """Start to fetch the newest keys, unless the last fetch is too recent. If it fails, the keys stay in use."""

    def wait(self, timeout_s: float) -> None:
        """Wait until the fetch in progress has succeeded or failed."""

    def _use(self, data: bytes) -> None:
        """Use the keys of a key set that was read now.

        Raises:
            ValueError: See `parse_keys`.
        """
        self._keys = parse_keys(data)
        self.fetched_s = self._looked_s = self._wall()
        self._problem = ""
        self.revision += 1


class FileKeys(Keys):
    """Keys in a file that other programs write. They are read at once."""

    def __init__(self, path: Path, *, wall: Callable[[], float] = time.time) -> None:
        super().__init__(str(path), FILE_AGE_S, wall)
        self._file = FollowedFile(path, max_bytes=MAX_BYTES)
        self.seek()

    def seek(self) -> None:
        """See `Keys`."""
        is_first, self._looked_s = self._looked_s is None, self._wall()
        if self._file.look() or is_first:
            content = self._file.content
            try:
                if not isinstance(content, bytes):
                    raise ValueError(content or "no such file")
                self._use(content)
            except ValueError as error:
                self._problem = str(error)


class RemoteKeys(Keys):
    """Keys at a URL. The keys that were fetched last are cached on disk, and verify tokens while the provider is down.

    A fetch is over after `fetch_s`, whatever its thread waits for. The next one begins when that thread has ended.

    Args:
        url: The URL of the key set.
        state: The folder of the cache.
        clock: A monotonic clock, in seconds.
        wall: Wall-clock time, in seconds.
        fetch: Fetches a URL within a timeout in seconds and a size in bytes; None for `fetch.get`.
        fetch_s: The timeout of one fetch.
    """

    def __init__(
        self,
        url: str,
        state: Path,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        fetch: Callable[[str, float, int], bytes] | None = None,
        fetch_s: float | None = None,
    ) -> None:
        super().__init__(shown_url(url), MAX_AGE_S, wall)
        self._url = url
        self._clock = clock
        self._fetch = fetch
        self._fetch_s = FETCH_S if fetch_s is None else fetch_s
        self._cache = state / f"jwks-{blake2b(url.encode(), digest_size=12).hexdigest()}.json"
        self._idle = threading.Event()  # set while no fetch is in progress
        self._idle.set()
        self._give_up_s = 0.0
        self._next_s: float | None = None  # the earliest time of the next fetch; None before the first `seek`
        self._read_cache()
        if not self._keys:
            self._begin()

    @property
    def problem(self) -> str:
        """See `Keys`."""
        return f"no answer in {self._fetch_s:g} s" if self._is_overdue else self._problem

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
        self._give_up_s = self._clock() + self._fetch_s
        self._idle.clear()
        try:
            threading.Thread(target=self._renew, name="mcpguard-keys", daemon=True).start()
        except RuntimeError as error:  # the system has no thread now
            self._problem = str(error)
            self._idle.set()

    def _renew(self) -> None:
        try:
            from mcpguard.identity import fetch  # loads HTTP and TLS: only if keys are fetched, and off the calls' path

            data = (self._fetch or fetch.get)(self._url, self._fetch_s, MAX_BYTES)
            if self._clock() >= self._give_up_s:
                raise TimeoutError
            self._use(data)
            self._write_cache()
        except TimeoutError:
            self._problem = f"no answer in {self._fetch_s:g} s"
        except ValueError as error:
            self._problem = str(error)
        except Exception as error:  # `wait` must end whatever happens
            self._problem = f"internal error, please report it: {type(error).__name__}"  # its text can hold a secret of the URL
        finally:
            self._idle.set()

    def _read_cache(self) -> None:
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError, RecursionError):
            cached = json.loads(read_at_once(self._cache, MAX_BYTES))
            if cached["url"] == self.source and (fetched_s := time_of(cached, "fetched_s")):
                self._keys = parse_keys(json.dumps(cached).encode())
                self.fetched_s = self._looked_s = fetched_s

    def _write_cache(self) -> None:
        """Write the keys for the next start. If that fails, the next start fetches them."""
        cached = json.dumps({"url": self.source, "fetched_s": self.fetched_s, "keys": self._keys}).encode()
        with contextlib.suppress(OSError):
            private_folder(self._cache.parent)
            replace(self._cache, cached)
