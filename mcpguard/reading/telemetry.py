"""Sends the audit log to an OpenTelemetry collector, in a process of its own, and continues where the last one stopped.

Rows are sent in order and in batches. A file keeps the id of the last row that was sent. A row is sent again if this process
ends between the collector's answer and the writing of that file.
"""

import gzip
import json
import os
import random
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple, Protocol
from urllib.parse import unquote, urlsplit

from mcpguard.config import Settings
from mcpguard.errors import ConfigError, McpguardError, StoreUnavailable
from mcpguard.files import open_private, private_folder
from mcpguard.identity.jwt_settings import is_loopback
from mcpguard.reading.following import follow
from mcpguard.stores.api import Readable, StoredRow, Wanted
from mcpguard.stores.clock import wall_us
from mcpguard.stores.locks import try_lock
from mcpguard.text.digest import blake2b

HEADERS: Final = "OTEL_EXPORTER_OTLP_HEADERS"
SERVICE: Final = "OTEL_SERVICE_NAME"

BATCH: Final = 512
"""The most rows in a request, as in OpenTelemetry's own exporters."""

OUTCOME_S: Final = 60.0
"""How long a row waits for its outcome. Then it is sent without a duration."""

TIMEOUT_S: Final = 10.0
"""How long to wait for the collector's answer."""

FIRST_WAIT_S: Final = 1.0
LONGEST_WAIT_S: Final = 60.0
"""The waits between tries: the first, and the longest."""

TRIES: Final = 6
"""How often a request is sent if the log is not followed. The waits add up to about half a minute."""

_RETRIED: Final = frozenset({408, 429, 500, 502, 503, 504})
"""Statuses after which the same request may succeed later."""


class Rejected(McpguardError):
    """The collector refuses a request, and would refuse it again."""


class Unreached(McpguardError):
    """The collector cannot take a request now.

    Args:
        message: Why.
        wait_s: The wait that the collector asks for; 0 if it asks for none.
    """

    def __init__(self, message: str, wait_s: float = 0) -> None:
        super().__init__(message, "check that the collector runs and takes OTLP over HTTP at this URL")
        self.wait_s = wait_s


class Message(Protocol):
    """A message of Protocol Buffers."""

    def SerializeToString(self) -> bytes:  # noqa: N802 - the library's name
        """The message as bytes."""


class Collector(Protocol):
    """Takes messages."""

    def send(self, path: str, message: Message) -> None:
        """Send a message.

        Args:
            path: `v1/traces` or `v1/metrics`.
            message: The message.

        Raises:
            Rejected: It will not be taken.
            Unreached: It is not taken now.
        """


class HttpCollector:
    """A collector at a URL.

    Args:
        url: Its URL, to which `/v1/traces` and `/v1/metrics` are added.
        headers: Headers of each request.
    """

    def __init__(self, url: str, headers: Mapping[str, str]) -> None:
        import httpx2

        # Headers may hold secrets, so what is plain HTTP on this machine never goes through a proxy
        is_plain = urlsplit(url).scheme == "http" and is_loopback(urlsplit(url).hostname or "")
        own = {"content-type": "application/x-protobuf", "content-encoding": "gzip"}
        self._url = url.rstrip("/")
        self._errors = (httpx2.HTTPError, httpx2.InvalidURL, OSError)
        self._client = httpx2.Client(
            headers={**headers, **own}, timeout=TIMEOUT_S, follow_redirects=False, trust_env=not is_plain
        )

    def send(self, path: str, message: Message) -> None:
        """See `Collector`. The errors do not repeat what the collector answers, which can hold anything."""
        url = f"{self._url}/{path}"
        try:
            with self._client.stream("POST", url, content=gzip.compress(message.SerializeToString(), 1)) as answer:
                status, wait = answer.status_code, answer.headers.get("retry-after", "")
        except self._errors as error:
            raise Unreached(f"{url}: {type(error).__name__}") from error
        if status in _RETRIED:
            raise Unreached(f"{url}: status {status}", float(wait) if wait.isascii() and wait.isdigit() else 0)
        if not 200 <= status < 300:
            hint = f"check {HEADERS}" if status in {401, 403} else "check the URL; it must not end in /v1/traces"
            raise Rejected(f"{url}: the collector answered with status {status}", hint)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()


def checked_url(url: str) -> str:
    """A collector's URL.

    Raises:
        ConfigError: It is not a URL of a collector, or holds a secret.
    """
    try:
        parts = urlsplit(url)
        host = parts.hostname
        _ = parts.port
    except ValueError:
        parts, host = urlsplit(""), None
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        raise ConfigError("--otlp: the URL has a user, a password, a query or a fragment", f"put secrets into {HEADERS}")
    if parts.scheme not in {"http", "https"} or not host or not url.isascii() or not url.isprintable() or " " in url:
        raise ConfigError("--otlp: this is not an http or https URL", "write --otlp http://localhost:4318")
    return url


def headers(environ: Mapping[str, str], url: str) -> dict[str, str]:
    """The headers in `OTEL_EXPORTER_OTLP_HEADERS`: `name=value,name=value`, percent-encoded.

    Args:
        environ: The environment.
        url: The collector's URL. With headers it must be https, or http on this machine: they often hold an API key.

    Raises:
        ConfigError: The variable has another form, or the network could read the headers. The message does not repeat them.
    """
    found: dict[str, str] = {}
    for part in environ.get(HEADERS, "").split(","):
        name, sign, value = part.strip().partition("=")
        if not part.strip():
            continue
        name, value = name.strip().lower(), unquote(value.strip())
        is_name = name.isascii() and name.replace("-", "").replace("_", "").isalnum()
        if not sign or not is_name or not value.isascii() or not value.isprintable():
            raise ConfigError(f"{HEADERS}: not a list of name=value", "write api-key=…,other-name=…")
        found[name] = value
    parts = urlsplit(url)
    if found and parts.scheme != "https" and not is_loopback(parts.hostname or ""):
        raise ConfigError(f"--otlp: {url} would receive {HEADERS} unencrypted", f"write https://, or unset {HEADERS}")
    return found


class Position:
    """The file with the id of the last row that was sent, for one store, namespace and collector.

    Args:
        folder: The account's state folder.
        store: The store's address without secrets.
        namespace: The namespace.
        url: The collector's URL.

    Raises:
        McpguardError: Another process sends the same rows.
        OSError: The file cannot be used.
    """

    def __init__(self, folder: Path, store: str, namespace: str, url: str) -> None:
        self._what = {"store": store, "namespace": namespace, "url": url}
        name = blake2b(json.dumps(self._what).encode(), digest_size=8).hexdigest()
        private_folder(folder)
        self.path = folder / f"otlp-{name}.json"
        self._lock = open_private(self.path.with_suffix(".lock"))
        if not try_lock(self._lock):
            os.close(self._lock)
            raise McpguardError(f"another process sends this audit log to {url}", "let it continue, or end it first")

    def read(self, key: bytes) -> int | None:
        """The id of the last row that was sent; None if there is none, 0 if it was of another store at the same address.

        Args:
            key: The store's `args_key`, which is made at random with the store.
        """
        try:
            kept = json.loads(self.path.read_text("utf-8"))
            return int(kept["row"]) if kept.get("made", _made(key)) == _made(key) else 0
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def write(self, row_id: int, key: bytes) -> None:
        """Replace the file. The arguments are those of `read`, and a row's id.

        Raises:
            OSError: It cannot be written.
        """
        new = self.path.with_suffix(".new")
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(fd, "w", encoding="utf-8") as file:
            json.dump(self._what | {"made": _made(key), "row": row_id}, file)
        new.replace(self.path)

    def close(self) -> None:
        """Release the file to other processes."""
        os.close(self._lock)


def _made(key: bytes) -> str:
    """A name of the store with this `args_key`, which does not tell the key."""
    return blake2b(b"mcpguard", key=key, digest_size=8).hexdigest()


class Options(NamedTuple):
    """What is sent, and how.

    Attributes:
        wanted: The rows.
        service: The name of the service.
        with_user: Whether spans and metrics name users.
        follow: Whether to wait for further rows.
    """

    wanted: Wanted
    service: str = "mcpguard"
    with_user: bool = False
    follow: bool = False


class Exporter:
    """Sends rows.

    Args:
        settings: They name the store and the namespace.
        collector: Takes the rows.
        position: Where to begin, and where this is kept.
        options: See `Options`.
        say: Tells a person something.
        sleep: Waits for this many seconds.

    Attributes:
        sent: How many rows were sent.
    """

    def __init__(
        self,
        settings: Settings,
        collector: Collector,
        position: Position,
        options: Options,
        say: Callable[[str], None],
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        from mcpguard.reading.otlp import Metrics, resource

        self.sent = 0
        self._settings = settings
        self._collector = collector
        self._position = position
        self._options = options
        self._say = say
        self._sleep = sleep
        self._source = resource(options.service, settings.namespace)
        self._metrics = Metrics(wall_us(), with_user=options.with_user)

    def run(self) -> None:
        """Send rows. If the log is followed, this ends only with an error, or if the wanted time ends.

        Raises:
            Rejected: The collector refuses the rows.
            Unreached: The collector takes no rows, and the log is not followed.
            StoreUnavailable: The store cannot be read, and the log is not followed.
        """
        if not self._options.follow:
            with self._settings.read_store() as store:
                for page in store.rows(after=self._begin(store), wanted=self._options.wanted):
                    self._send_all(page, store.args_key)
            return
        failures = 0
        while True:
            before = self.sent
            try:
                self._follow()
                return
            except StoreUnavailable as error:
                failures = 1 if self.sent > before else failures + 1
                if failures == 1:
                    self._say(f"{error.message}; trying again")
                self._sleep(_wait_s(failures))

    def _follow(self) -> None:
        after = 0
        if self._settings.address.exists():
            with self._settings.read_store() as store:
                after = self._begin(store)
        wanted = self._options.wanted
        for store, page in follow(self._settings, wanted, self._say, self._sleep, after=after, outcome_s=OUTCOME_S):
            self._send_all(page, store.args_key)

    def _begin(self, store: Readable) -> int:
        """The id of the row after which to begin. An id after the newest row is that of another store, too."""
        newest = next((entry.row_id for entry in store.newest()), 0)
        kept = self._position.read(store.args_key)
        if kept is not None:
            return kept if kept <= newest else 0
        if self._options.follow and self._options.wanted.since_us is None:
            self._position.write(newest, store.args_key)
            return newest
        return 0

    def _send_all(self, page: Sequence[StoredRow], key: bytes) -> None:
        """Send rows of the store that has this key."""
        for at in range(0, len(page), BATCH):
            batch = page[at : at + BATCH]
            self._send(batch)
            self._position.write(batch[-1].row_id, key)
            self.sent += len(batch)

    def _send(self, batch: Sequence[StoredRow]) -> None:
        """Send spans and metrics, again and again if need be."""
        from mcpguard.reading.otlp import spans

        found = spans(batch, self._source, with_user=self._options.with_user)
        if found.resource_spans[0].scope_spans[0].spans:
            self._deliver("v1/traces", found)
        self._metrics.add(batch)
        self._deliver("v1/metrics", self._metrics.message(self._source, wall_us()))

    def _deliver(self, path: str, message: Message) -> None:
        failures = 0
        while True:
            try:
                self._collector.send(path, message)
            except Unreached as error:
                failures += 1
                if not self._options.follow and failures == TRIES:
                    raise
                if failures == 1:
                    self._say(f"{error.message}; trying again")
                self._sleep(max(min(error.wait_s, LONGEST_WAIT_S), _wait_s(failures)))
            else:
                if failures:
                    self._say("the collector takes rows again")
                return


def _wait_s(failures: int) -> float:
    """How long to wait after this many failures in a row, with some chance so that processes do not retry all at once."""
    longest = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2.0 ** min(failures - 1, 10))
    return longest * random.uniform(0.5, 1)  # noqa: S311 - it only spreads requests
