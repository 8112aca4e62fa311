"""Sends the audit log to an OpenTelemetry collector, in a process of its own, and continues where the last one stopped.

Rows are sent in order and in batches, as spans and metrics by OpenTelemetry's conventions for MCP and generative AI. A file
keeps the id of the last row that was sent. A row is sent again if this process ends between the collector's answer and the
writing of that file.

Source: https://github.com/open-telemetry/semantic-conventions-genai, docs/gen-ai/mcp.md
"""

import json
import logging
import os
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import requests
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader, MetricsData
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode
from opentelemetry.util.re import parse_env_headers

from mcpguard import __version__
from mcpguard.config import Settings
from mcpguard.errors import ConfigError, McpguardError, StoreUnavailable
from mcpguard.files import open_private, private_folder
from mcpguard.identity.caller import Agent
from mcpguard.light_typing import Any, Final
from mcpguard.locks import try_lock
from mcpguard.policy.model import SELECTORS
from mcpguard.reading.following import follow
from mcpguard.session.audit import FAILED, limit_text, record, warned_text
from mcpguard.session.verdict import REFUSED
from mcpguard.stores.api import Readable, StoredRow, Wanted
from mcpguard.text.digest import blake2b
from mcpguard.text.redaction import MASK
from mcpguard.urls import is_loopback, is_printable, parts_of
from mcpguard.whole_files import replace

HEADERS: Final = "OTEL_EXPORTER_OTLP_HEADERS"
SERVICE: Final = "OTEL_SERVICE_NAME"

_HEADERS: Final = (HEADERS, "OTEL_EXPORTER_OTLP_TRACES_HEADERS", "OTEL_EXPORTER_OTLP_METRICS_HEADERS")
"""The variables from which the exporters take headers."""

BATCH: Final = 512
"""The most rows in a request, as in OpenTelemetry's own exporters."""

OUTCOME_S: Final = 60.0
"""How long a row waits for its outcome. Then it is sent without a duration."""

PATIENCE_S: Final = 60.0
"""How long OpenTelemetry's exporter tries to send a request, with longer and longer waits."""

AGAIN_S: Final = 30.0
"""The wait before it tries again, if the log is followed."""

BOUNDS_S: Final = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 120, 300)
"""The buckets of `mcp.server.operation.duration`, as the conventions recommend."""

_LATER: Final = frozenset({0, 408, 429, 500, 502, 503, 504})
"""Statuses after which the same request may succeed later; 0 if there is no answer."""

_USER: Final = re.compile(rf"^user=[^*]+?(?= (?:{'|'.join(SELECTORS)}|per)=|$)")
"""What selects one user in the text of a rule."""

_NO_CALLS: Final = ("policy", "invalid")
_METHOD: Final[dict[str, str | int]] = {"mcp.method.name": "tools/call", "gen_ai.operation.name": "execute_tool"}
_OF_CALLS: Final = {"gen_ai.tool.name": "tool", "mcpguard.server": "server", "user.name": "user"}
_OF_DURATIONS: Final = _OF_CALLS | {"error.type": "error"}
_OF_DECISIONS: Final = _OF_CALLS | {"mcpguard.decision": "decision", "mcpguard.axis": "axis", "mcpguard.tier": "tier"}
_OF_SPANS: Final = _OF_DURATIONS | {
    "gen_ai.agent.name": "agent",
    "jsonrpc.request.id": "request_id",
    "mcpguard.audit_id": "id",
    **{
        f"mcpguard.{name}": name
        for name in (
            "session", "client_session", "decision", "axis", "rule", "limit", "reason", "cost", "in_flight", "waited_ms",
            "remaining", "retry_after_ms", "repeats", "warned", "outcome",
        )
    },
}  # fmt: skip
"""The attributes, each with the member of a record that it has."""

logging.getLogger("opentelemetry").setLevel(logging.CRITICAL + 1)  # its lines would be on stderr, and can repeat headers


class Rejected(McpguardError):
    """The collector refuses a request, and would refuse it again."""


class CollectorUnreachable(McpguardError):
    """The collector cannot take a request now."""


class Collector:
    """A collector at a URL, which is sent to by OpenTelemetry's exporters. They take headers from the environment.

    Args:
        url: Its URL, to which `/v1/traces` and `/v1/metrics` are added.
        patience_s: How long a request is tried.
    """

    def __init__(self, url: str, patience_s: float = PATIENCE_S) -> None:
        self._url = url.rstrip("/")
        self._status = 0
        session = requests.Session()
        session.trust_env = not _is_plain_here(url)  # headers may hold secrets: what is plain HTTP here meets no proxy
        session.auth = lambda request: request  # else passwords of ~/.netrc are sent
        session.hooks["response"].append(self._saw)
        how: Any = {"timeout": patience_s, "compression": Compression.Gzip, "session": session}
        self._spans = OTLPSpanExporter(f"{self._url}/v1/traces", **how)
        self._metrics = OTLPMetricExporter(f"{self._url}/v1/metrics", **how)

    def _saw(self, answer: requests.Response, **_: object) -> None:
        self._status = answer.status_code

    def send(self, message: Sequence[ReadableSpan] | MetricsData) -> None:
        """Send spans or metrics. The errors do not repeat what the collector answers, which can hold anything.

        Raises:
            Rejected: They will not be taken.
            CollectorUnreachable: They are not taken now.
        """
        self._status = 0
        if isinstance(message, MetricsData):
            url = f"{self._url}/v1/metrics"
            self._metrics.export(message)
        else:
            url = f"{self._url}/v1/traces"
            self._spans.export(message)
        if self._status in _LATER:
            what = f"status {self._status}" if self._status else "no answer"
            raise CollectorUnreachable(f"{url}: {what}", "check that the collector runs and takes OTLP over HTTP at this URL")
        if not 200 <= self._status < 300:
            hint = f"check {HEADERS}" if self._status in {401, 403} else "check the URL; it must not end in /v1/traces"
            raise Rejected(f"{url}: the collector answered with status {self._status}", hint)


def _is_plain_here(url: str) -> bool:
    parts = urlsplit(url)
    return parts.scheme == "http" and is_loopback(parts.hostname or "")


def checked_url(url: str, environ: Mapping[str, str]) -> str:
    """A collector's URL.

    Args:
        url: The URL.
        environ: The environment. With headers in it the URL must be https, or http on this machine: they often hold an API key.

    Raises:
        ConfigError: It is not a URL of a collector, or holds a secret; or the network could read the headers, or they have
            another form than `name=value,name=value`. The message does not repeat them.
    """
    parts = parts_of(url) or urlsplit("")
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        raise ConfigError("--otlp: the URL has a user, a password, a query or a fragment", f"put secrets into {HEADERS}")
    if parts.scheme not in {"http", "https"} or not parts.hostname or not is_printable(url):
        raise ConfigError("--otlp: this is not an http or https URL", "write --otlp http://localhost:4318")
    for name in _HEADERS:
        given = [part for part in environ.get(name, "").split(",") if part.strip()]
        found = parse_env_headers(",".join(given), liberal=True)
        if len(found) < len(given) or not all(value.isascii() and value.isprintable() for value in found.values()):
            raise ConfigError(f"{name}: not a list of name=value", "write api-key=…,other-name=…")
        if given and parts.scheme != "https" and not is_loopback(parts.hostname):
            raise ConfigError(f"--otlp: {url} would receive {name} unencrypted", f"write https://, or unset {name}")
    return url


class Telemetry:
    """Makes spans and metrics of rows.

    Args:
        service: The name of the service.
        namespace: The namespace of the store.
        with_user: Whether they have the user. If not, they do not have why a call is unauthenticated either: the reason may
            have the path of the token, which is in the user's folder.
    """

    def __init__(self, service: str, namespace: str, *, with_user: bool) -> None:
        source = {"service.name": service, "service.version": __version__, "mcpguard.namespace": namespace}
        self._source = Resource({key: _text(value) for key, value in source.items()})
        self._with_user = with_user
        self._reader = InMemoryMetricReader()
        meter = MeterProvider([self._reader], self._source, shutdown_on_exit=False).get_meter("mcpguard", __version__)
        self._decisions = meter.create_counter("mcpguard.decisions", "{call}", "Calls by the decision on them.")
        self._durations = meter.create_histogram(
            "mcp.server.operation.duration",
            "s",
            "The time from a call to its answer.",
            explicit_bucket_boundaries_advisory=BOUNDS_S,
        )

    def metrics(self, rows: Iterable[StoredRow]) -> MetricsData | None:
        """Count rows. Returns the metrics of all rows so far; None if there are none."""
        for one in rows:
            if one.row.decision == "policy":
                continue
            found = self._record(one)
            self._decisions.add(one.row.repeats or 1, _attributes(found, _OF_DECISIONS))
            if one.duration_us is not None:
                self._durations.record(one.duration_us / 1e6, _METHOD | _attributes(found, _OF_DURATIONS))
        return self._reader.get_metrics_data()

    def spans(self, rows: Iterable[StoredRow]) -> list[ReadableSpan]:
        """The spans of calls. A row about lines that are no calls has none; a row that sums up denials may name no tool.

        The same row always has the same span id, so a backend can tell that it got a span twice.
        """
        records = [(one, self._record(one)) for one in rows]
        return [self._span(one, found) for one, found in records if "tool" in found or one.row.decision not in _NO_CALLS]

    def _record(self, stored: StoredRow) -> dict[str, Any]:
        """A row as `audit tail --json` prints it, but for what spans and metrics write in another form."""
        found: dict[str, Any] = record(stored.row, outcome=stored.outcome, duration_us=stored.duration_us)
        decision, outcome = found["decision"], found.get("outcome")
        agent = Agent.split(found.get("agent", ""))
        found |= {
            "tier": agent.tier if agent else None,
            "error": decision if decision in REFUSED else outcome if outcome in FAILED else None,
            "limit": limit_text(found) if "limit" in found else None,
            "warned": warned_text(found) if "warned" in found else None,
            "request_id": str(found["request_id"]) if "request_id" in found else None,
        }
        if not self._with_user:
            found |= {"user": None, "rule": _USER.sub(f"user={MASK}", found["rule"]) if "rule" in found else None}
            found |= {"reason": None} if decision == "unauthenticated" else {}
        return found

    def _span(self, stored: StoredRow, found: dict[str, Any]) -> ReadableSpan:
        row = stored.row
        trace_id = found.get("trace_id") or f"{found['session']}{row.seq:016x}"
        span_id = blake2b(found["id"].encode(), digest_size=8).digest()
        return ReadableSpan(
            _text(f"tools/call {found['tool']}") if "tool" in found else "tools/call",
            SpanContext(int(trace_id, 16), int.from_bytes(span_id), is_remote=False),
            resource=self._source,
            attributes=_METHOD | {"network.transport": "pipe"} | _attributes(found, _OF_SPANS),
            kind=SpanKind.SERVER,
            status=Status(StatusCode.ERROR, found["error"]) if found["error"] else Status(),
            start_time=row.time_us * 1000,
            end_time=(row.time_us + (stored.duration_us or 0)) * 1000,
            instrumentation_scope=InstrumentationScope("mcpguard", __version__),
        )


def _attributes(found: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, str | int]:
    """The attributes with these names, each with the member of a record that it has. Numbers stay numbers."""
    values = {name: found.get(member) for name, member in names.items()}
    return {name: value if isinstance(value, int) else _text(value) for name, value in values.items() if value is not None}


def _text(value: object) -> str:
    """A text without lone surrogates, which no message can hold."""
    return str(value).encode(errors="replace").decode()


class SentPosition:
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
            raise McpguardError(f"another process sends this audit log to {url}", "let it go on, or end it first")

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
        replace(self.path, json.dumps(self._what | {"made": _made(key), "row": row_id}).encode())

    def close(self) -> None:
        """Release the file to other processes."""
        os.close(self._lock)


def _made(key: bytes) -> str:
    """A name of the store with this `args_key`, which does not tell the key."""
    return blake2b(b"mcpguard", key=key, digest_size=8).hexdigest()


@dataclass
class Exporter:
    """Sends rows.

    Attributes:
        settings: They name the store.
        telemetry: Makes spans and metrics of the rows.
        collector: Takes these.
        position: Where to begin, and where this is kept.
        wanted: The rows.
        follow: Whether to wait for further rows.
        say: Tells a person something.
        sleep: Waits for this many seconds.
        sent: How many rows were sent.
    """

    settings: Settings
    telemetry: Telemetry
    collector: Collector
    position: SentPosition
    wanted: Wanted
    follow: bool
    say: Callable[[str], None]
    sleep: Callable[[float], None] = time.sleep
    sent: int = 0

    def run(self) -> None:
        """Send rows. If the log is followed, this ends only with an error, or if the wanted time ends.

        Raises:
            Rejected: The collector refuses the rows.
            CollectorUnreachable: The collector takes no rows, and the log is not followed.
            StoreUnavailable: The store cannot be read, and the log is not followed.
        """
        if self.follow:
            self._patiently(self._follow)
            return
        with self.settings.read_store() as store:
            for page in store.rows(after=self._begin(store), wanted=self.wanted):
                self._send_all(page, store.args_key)

    def _patiently(self, do: Callable[[], None]) -> None:
        """Do something; if the log is followed, again until the store and the collector can be used."""
        told: tuple[str, int] | None = None
        while True:
            try:
                do()
                return
            except (StoreUnavailable, CollectorUnreachable) as error:
                if not self.follow:
                    raise
                if told != (error.message, self.sent):
                    self.say(f"{error.message}; trying again")
                told = error.message, self.sent
                self.sleep(AGAIN_S)

    def _follow(self) -> None:
        rows = follow(self.settings, self.wanted, self.say, self.sleep, begin=self._begin, outcome_s=OUTCOME_S)
        for store, page in rows:
            self._send_all(page, store.args_key)

    def _begin(self, store: Readable) -> int:
        """The id of the row after which to begin. An id after the newest row is that of another store, too."""
        newest = next((entry.row_id for entry in store.newest()), 0)
        kept = self.position.read(store.args_key)
        if kept is not None:
            return kept if kept <= newest else 0
        if self.follow and self.wanted.since_us is None:
            self.position.write(newest, store.args_key)
            return newest
        return 0

    def _send_all(self, page: Sequence[StoredRow], key: bytes) -> None:
        """Send rows of the store that has this key."""
        for at in range(0, len(page), BATCH):
            batch = page[at : at + BATCH]
            for message in (self.telemetry.spans(batch), self.telemetry.metrics(batch)):
                if message:
                    self._patiently(partial(self.collector.send, message))
            self.position.write(batch[-1].row_id, key)
            self.sent += sum(one.row.decision != "policy" for one in batch)
