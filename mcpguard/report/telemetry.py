"""Sends the audit log to an OpenTelemetry collector, in a process of its own, and goes on where the last one stopped.

Rows are sent in order and in batches. A file keeps the id of the last row that was sent. A row is sent again if this process
ends between the collector's answer and the writing of that file.
"""

import contextlib
import gzip
import json
import os
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol
from urllib.parse import unquote, urlsplit

from mcpguard.core.digest import blake2b
from mcpguard.core.verdict import FORWARDED
from mcpguard.errors import ConfigError, McpguardError, StoreUnavailable
from mcpguard.files import open_private, private_folder
from mcpguard.stores.api import Readable, StoredRow, Wanted
from mcpguard.stores.locks import try_lock

if TYPE_CHECKING:
    from google.protobuf.message import Message

HEADERS: Final = "OTEL_EXPORTER_OTLP_HEADERS"
SERVICE: Final = "OTEL_SERVICE_NAME"

BATCH: Final = 512
"""The most rows in a request, as in OpenTelemetry's own exporters."""

OUTCOME_US: Final = 60 * 1_000_000
"""How long a row waits for its outcome. Then it is sent without a duration."""

POLL_S: Final = 1.0
"""How often new rows and outcomes are looked for."""

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


class Collector(Protocol):
    """Takes messages."""

    def send(self, path: str, message: "Message") -> None:
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

        own = {"content-type": "application/x-protobuf", "content-encoding": "gzip"}
        self._url = url.rstrip("/")
        self._errors = (httpx2.HTTPError, httpx2.InvalidURL, OSError)
        self._client = httpx2.Client(headers={**headers, **own}, timeout=TIMEOUT_S, follow_redirects=False)

    def send(self, path: str, message: "Message") -> None:
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


def headers(environ: Mapping[str, str]) -> dict[str, str]:
    """The headers in `OTEL_EXPORTER_OTLP_HEADERS`: `name=value,name=value`, percent-encoded.

    Raises:
        ConfigError: The variable has another form. The message does not repeat it.
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
            raise McpguardError(f"another process sends this audit log to {url}", "end it, or use it")

    def read(self) -> int | None:
        """The id of the last row that was sent; None if there is none."""
        try:
            return int(json.loads(self.path.read_text("utf-8"))["row"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def write(self, row_id: int) -> None:
        """Replace the file.

        Raises:
            OSError: It cannot be written.
        """
        new = self.path.with_suffix(".new")
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(fd, "w", encoding="utf-8") as file:
            json.dump(self._what | {"row": row_id}, file)
        new.replace(self.path)

    def close(self) -> None:
        """Release the file to other processes."""
        os.close(self._lock)


class Options(NamedTuple):
    """What is sent, and how.

    Attributes:
        wanted: The rows.
        namespace: Their namespace.
        service: The name of the service.
        with_user: Whether spans and metrics name users.
        follow: Whether to wait for further rows.
    """

    wanted: Wanted
    namespace: str
    service: str = "mcpguard"
    with_user: bool = False
    follow: bool = False


class Exporter:
    """Sends rows.

    Args:
        collector: Takes them.
        position: Where to begin, and where this is kept.
        options: See `Options`.
        say: Tells the user something.
        sleep: Waits for some seconds.
        wall_us: The wall-clock time.
    """

    def __init__(
        self,
        collector: Collector,
        position: Position,
        options: Options,
        *,
        say: Callable[[str], None],
        sleep: Callable[[float], None] = time.sleep,
        wall_us: Callable[[], int] = lambda: time.time_ns() // 1000,
    ) -> None:
        from mcpguard.report.otlp import Metrics, resource

        self._collector = collector
        self._position = position
        self._options = options
        self._say = say
        self._sleep = sleep
        self._wall_us = wall_us
        self._source = resource(options.service, options.namespace)
        self._metrics = Metrics(wall_us(), with_user=options.with_user)
        self._waited: tuple[int, float] = (0, 0.0)  # a row whose outcome is awaited, and for how many seconds
        self.sent = 0

    def run(self, open_store: Callable[[], Readable], identity: Callable[[], object]) -> None:
        """Send the rows of a store. If the log is followed, return only with an error.

        Args:
            open_store: Opens the store.
            identity: A value that changes if the store is replaced.

        Raises:
            Rejected: The collector refuses the rows.
            Unreached: The collector takes no rows, and the log is not followed.
            StoreUnavailable: The store cannot be read, and the log is not followed.
        """
        failures = 0
        while True:
            try:
                self._run(open_store, identity)
            except StoreUnavailable as error:
                if not self._options.follow:
                    raise
                if not failures:
                    self._say(f"{error.message}; trying again")
                failures += 1
                self._sleep(_wait_s(failures))
            else:
                if not self._options.follow:
                    return
                failures = 0
                self._say("the store was replaced; going on with the first row of the new one")
                self._position.write(0)

    def _run(self, open_store: Callable[[], Readable], identity: Callable[[], object]) -> None:
        """Send rows until there are no more or, if the log is followed, until the store is replaced."""
        found = identity()  # asked before the store is opened, so that a replacement in between is noticed
        with contextlib.closing(open_store()) as store:
            newest = next((entry.row_id for entry in store.newest()), 0)
            last = self._begin(newest)
            while True:
                is_replaced = identity() != found  # asked first: rows from before are in the open store
                for batch in self._batches(store, last):
                    self._send(batch)
                    last = batch[-1].row_id
                    self._position.write(last)
                    self.sent += len(batch)
                if not self._options.follow or is_replaced:
                    return
                self._sleep(POLL_S)
                self._waited = self._waited[0], self._waited[1] + POLL_S

    def _begin(self, newest: int) -> int:
        """The id of the row after which to begin. A position after the newest row is that of another store."""
        kept = self._position.read()
        if kept is not None:
            return kept if kept <= newest else 0
        begins_now = self._options.follow and self._options.wanted.since_us is None
        return newest if begins_now else 0

    def _batches(self, store: Readable, after: int) -> Iterator[list[StoredRow]]:
        """The rows that can be sent now, in batches, up to the first one whose outcome is still awaited."""
        batch: list[StoredRow] = []
        for page in store.rows(after=after, wanted=self._options.wanted):
            for one in page:
                if self._is_awaited(one):
                    if batch:
                        yield batch
                    return
                batch.append(one)
                if len(batch) == BATCH:
                    yield batch
                    batch = []
        if batch:
            yield batch

    def _is_awaited(self, one: StoredRow) -> bool:
        """Whether a row's outcome may still come. The clock of the process that wrote the row may be wrong."""
        if not self._options.follow or one.outcome is not None or one.row.decision not in FORWARDED:
            return False
        if self._wall_us() - one.row.time_us >= OUTCOME_US:
            return False
        if self._waited[0] != one.row_id:
            self._waited = one.row_id, 0.0
        return self._waited[1] * 1_000_000 < OUTCOME_US

    def _send(self, batch: Sequence[StoredRow]) -> None:
        """Send a batch, again and again if need be."""
        from mcpguard.report.otlp import spans

        self._deliver("v1/traces", spans(batch, self._source, with_user=self._options.with_user))
        self._metrics.add(batch)
        self._deliver("v1/metrics", self._metrics.message(self._source, self._wall_us()))

    def _deliver(self, path: str, message: "Message") -> None:
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
                self._sleep(max(error.wait_s, _wait_s(failures)))
            else:
                if failures:
                    self._say("the collector takes rows again")
                return


def _wait_s(failures: int) -> float:
    """How long to wait after so many failures in a row, with some chance so that processes do not retry all at once."""
    longest = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2 ** min(failures - 1, 10))
    return longest * random.uniform(0.5, 1)  # noqa: S311 - it only spreads requests
