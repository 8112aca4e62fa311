"""The provider's public keys: from a URL or a file, cached in memory and on disk, refreshed in the background."""

import contextlib
import json
import threading
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import jwt

from mcpguard.files import private_folder, read_at_once
from mcpguard.identity.claims import time_of
from mcpguard.light_typing import Final
from mcpguard.text.digest import blake2b
from mcpguard.urls import shown_url
from mcpguard.whole_files import replace

REFRESH_S: Final = 30.0
"""The shortest time between two fetches, whatever keys the tokens name. The first fetch of a process does not count."""

FETCH_S: Final = 2.0
"""The timeout of one fetch."""

MAX_AGE_S: Final = 3600.0
"""Keys older than this are fetched again in the background: the provider may have withdrawn one."""

FILE_REFRESH_S: Final = 1.0
"""The shortest time between two looks at a file of keys."""

FILE_AGE_S: Final = 60.0
"""A file of keys is read again after this time."""

MAX_BYTES: Final = 1 << 20
"""The largest key set that is accepted. Those of providers take some kilobytes."""

_MAX_KEYS: Final = 100
_MAX_TRIED: Final = 16
"""How many keys are tried for one signature. Providers publish two or three keys for an algorithm."""

_PUBLIC: Final = ("kty", "kid", "alg", "n", "e", "crv", "x", "y")
"""The members that are needed to verify."""

Jwk = dict[str, str]
"""A public key in the form of RFC 7517, reduced to the members that are needed to verify."""


def parse_keys(data: bytes) -> tuple[Jwk, ...]:
    """The keys of a JWK set that can verify signatures.

    Raises:
        ValueError: The data is not a key set, or has no such key. The text says which.
    """
    try:
        entries = json.loads(data)["keys"][:_MAX_KEYS]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError("this is not a key set") from error
    signing = [entry for entry in entries if isinstance(entry, dict) and entry.get("use", "sig") == "sig"]
    public = [{name: entry[name] for name in _PUBLIC if isinstance(entry.get(name), str)} for entry in signing]
    keys = tuple(key for key in public if _verifier(key))
    if not keys:
        raise ValueError("there is no key in it that verifies signatures")
    return keys


def _verifier(key: Jwk, algorithm: str | None = None) -> jwt.PyJWK | None:
    """A key in the form that verifies; None if it cannot verify, is for another algorithm, or is too weak."""
    with contextlib.suppress(Exception):  # PyJWT raises almost anything for a damaged key
        made = jwt.PyJWK(dict(key), algorithm)
        return None if made.Algorithm.check_key_length(made.Algorithm.prepare_key(made.key)) else made
    return None


def _fetched(url: str, timeout_s: float, max_bytes: int) -> bytes:
    from mcpguard import https  # loads HTTP and TLS: only if keys are fetched, and off the calls' path

    return https.get(url, timeout_s, max_bytes)


class ProviderKeys:
    """The keys of one provider, at a URL or in a file. Only `wait` blocks.

    A file is read at once, and a URL is fetched in the background. The keys that were fetched last are cached on disk, and
    verify tokens while the provider is down. Nobody waits longer than `fetch_s` for a fetch, whatever its thread waits for. The
    next one begins when that thread has ended.

    Args:
        jwks: The URL or the file of the key set.
        state: The folder of the cache.
        clock: A monotonic clock, in seconds.
        wall: Wall-clock time, in seconds.
        fetch: Fetches a URL within a timeout in seconds and a size in bytes.
        fetch_s: The timeout of one fetch.

    Attributes:
        source: The file or the URL, without its query, which can hold a secret.
        fetched_s: When the keys were fetched, in wall-clock time; None if there are none.
    """

    def __init__(
        self,
        jwks: str | Path,
        state: Path,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        fetch: Callable[[str, float, int], bytes] = _fetched,
        fetch_s: float = FETCH_S,
    ) -> None:
        self.fetched_s: float | None = None
        self._jwks = jwks
        self._clock = clock
        self._wall = wall
        self._fetch = fetch
        self._fetch_s = fetch_s
        self._keys: tuple[Jwk, ...] = ()
        self._problem = ""
        self._ended = 0  # how many fetches have succeeded or failed
        self._idle = threading.Event()  # set while no fetch is in progress
        self._idle.set()
        self._give_up_s = 0.0
        self._next_s: float | None = None  # the earliest time of the next fetch; None before the first `seek`
        self._cache: Path | None = None
        if isinstance(jwks, Path):
            self.source, self._refresh_s, self._max_age_s = str(jwks), FILE_REFRESH_S, FILE_AGE_S
        else:
            self.source, self._refresh_s, self._max_age_s = shown_url(jwks), REFRESH_S, MAX_AGE_S
            self._cache = state / f"jwks-{blake2b(jwks.encode(), digest_size=12).hexdigest()}.json"
            self._read_cache(self._cache)
        if not self._keys:
            self._begin()

    def __len__(self) -> int:
        return len(self._keys)

    @property
    def state(self) -> tuple[int, bool]:
        """Changes when a fetch begins, and when it ends."""
        return self._ended, self.is_fetching

    @property
    def problem(self) -> str:
        """Why the last fetch failed; empty if it succeeded."""
        return f"no answer in {self._fetch_s:g} s" if self._is_overdue else self._problem

    @property
    def is_fetching(self) -> bool:
        """Whether a fetch is in progress."""
        return not self._idle.is_set() and not self._is_overdue

    @property
    def stale_s(self) -> float:
        """When to call `seek` even if no key is missing. In the past if the age of the keys is unknown."""
        # If the keys come from the future, the clock was set back
        return 0.0 if self.fetched_s is None or self.fetched_s > self._wall() else self.fetched_s + self._max_age_s

    @property
    def _is_overdue(self) -> bool:
        return not self._idle.is_set() and self._clock() >= self._give_up_s

    def find(self, kid: str | None, algorithm: str) -> list[jwt.PyJWK]:
        """The keys that can verify a token with this `kid` and `alg`; without a `kid`, all that fit the algorithm."""
        named = (key for key in self._keys if kid in (None, key.get("kid")) and key.get("alg", algorithm) == algorithm)
        fitting = (found for key in named if (found := _verifier(key, algorithm)))
        return list(islice(fitting, _MAX_TRIED))

    def seek(self) -> None:
        """Start to fetch the newest keys, unless the last fetch is too recent. If it fails, the keys stay in use."""
        now_s = self._clock()
        if self._idle.is_set() and (self._next_s is None or now_s >= self._next_s):
            self._next_s = now_s + self._refresh_s
            self._begin()

    def wait(self, timeout_s: float) -> None:
        """Wait until the fetch in progress has succeeded or failed."""
        self._idle.wait(max(0.0, min(timeout_s, self._give_up_s - self._clock())))

    def _begin(self) -> None:
        self._give_up_s = self._clock() + self._fetch_s
        self._idle.clear()
        try:
            if isinstance(self._jwks, Path):
                self._renew()
            else:
                threading.Thread(target=self._renew, name="mcpguard-keys", daemon=True).start()
        except RuntimeError as error:  # the system has no thread now
            self._problem = str(error)
            self._idle.set()

    def _renew(self) -> None:
        try:
            is_file = isinstance(self._jwks, Path)
            data = read_at_once(self._jwks, MAX_BYTES) if is_file else self._fetch(str(self._jwks), self._fetch_s, MAX_BYTES)
            self._keys = parse_keys(data)
            self.fetched_s = self._wall()
            self._problem = ""
            self._write_cache()
        except OSError as error:
            self._problem = error.strerror or str(error)
        except ValueError as error:
            self._problem = str(error)
        except Exception as error:  # `wait` must end whatever happens
            self._problem = f"internal error, please report it: {type(error).__name__}"  # its text can hold a secret of the URL
        finally:
            self._ended += 1
            self._idle.set()

    def _read_cache(self, cache: Path) -> None:
        with contextlib.suppress(OSError, ValueError):
            data = read_at_once(cache, MAX_BYTES)
            keys = parse_keys(data)
            if fetched_s := time_of(json.loads(data), "fetched_s"):
                self._keys, self.fetched_s = keys, fetched_s

    def _write_cache(self) -> None:
        """Write the keys of a URL for the next start. If that fails, the next start fetches them."""
        if self._cache:
            with contextlib.suppress(OSError):
                private_folder(self._cache.parent)
                replace(self._cache, json.dumps({"fetched_s": self.fetched_s, "keys": self._keys}).encode())
