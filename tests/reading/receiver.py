"""An OTLP receiver over HTTP, which decodes what it gets."""

import contextlib
import gzip
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from typing import Any

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.web_server import reply, serving

MESSAGES: dict[str, Any] = {"/v1/traces": ExportTraceServiceRequest, "/v1/metrics": ExportMetricsServiceRequest}


class Receiver:
    """What came, and how the next requests are answered."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.answers: list[tuple[int, dict[str, str]]] = []  # the next statuses, each with further headers; then always 200
        self.headers: list[dict[str, str]] = []  # of the requests
        self.batches: list[int] = []  # how many spans each request had
        self.spans: list[Any] = []
        self.metrics: dict[str, Any] = {}  # the newest
        self.resources: list[dict[str, object]] = []  # the attributes of the senders
        self.came = threading.Condition()

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        body = handler.rfile.read(int(handler.headers["content-length"]))
        self.headers.append({name.lower(): value for name, value in handler.headers.items()})
        status, more = self.answers.pop(0) if self.answers else (200, {})
        if status == 200:
            self.take(handler.path, gzip.decompress(body))
        reply(handler, status, more)

    def take(self, path: str, body: bytes) -> None:
        message = MESSAGES[path]()
        message.ParseFromString(body)
        with self.came:
            if path == "/v1/traces":
                (group,) = message.resource_spans
                self.resources.append(values(group.resource.attributes))
                found = [span for scope in group.scope_spans for span in scope.spans]
                self.batches.append(len(found))
                self.spans += found
            else:
                (metrics,) = message.resource_metrics
                self.metrics = {one.name: one for scope in metrics.scope_metrics for one in scope.metrics}
            self.came.notify_all()

    def counts(self, *names: str) -> dict[tuple[object, ...], int]:
        found: dict[tuple[object, ...], int] = {}
        for point in self.metrics["mcpguard.decisions"].sum.data_points:
            attributes = values(point.attributes)
            key = tuple(attributes.get(name) for name in names)
            found[key] = found.get(key, 0) + point.as_int
        return found


def values(attributes: Any) -> dict[str, Any]:
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in attributes}


@contextlib.contextmanager
def receiving() -> Iterator[Receiver]:
    with serving(lambda handler: receiver.answer(handler)) as server:
        receiver = Receiver(server.server_port)
        yield receiver
