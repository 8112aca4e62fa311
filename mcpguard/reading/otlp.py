"""Makes OTLP messages from audit rows: spans and metrics by OpenTelemetry's conventions for MCP and generative AI.

Source: https://github.com/open-telemetry/semantic-conventions-genai, docs/gen-ai/mcp.md
"""

import json
import re
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from typing import Any, Final

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, InstrumentationScope, KeyValue
from opentelemetry.proto.metrics.v1.metrics_pb2 import AggregationTemporality
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from mcpguard import __version__
from mcpguard.identity.agent import Agent
from mcpguard.policy.model import SELECTORS
from mcpguard.session.audit import FAILED, Row, audit_id, axis_of, limit_text, members, record
from mcpguard.session.verdict import REFUSED
from mcpguard.stores.api import StoredRow
from mcpguard.text.digest import blake2b
from mcpguard.text.masking import MASK

BOUNDS_S: Final = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 120, 300)
"""The buckets of `mcp.server.operation.duration`, as the conventions recommend."""

MAX_SERIES: Final = 2000
"""The most series of a metric. Further calls are counted in one series with `otel.metric.overflow`."""

_USER: Final = re.compile(rf"^user=[^*]+?(?= (?:{'|'.join(SELECTORS)}|per)=|$)")
"""What selects one user in the text of a rule."""

_METHOD: Final = {"mcp.method.name": "tools/call", "gen_ai.operation.name": "execute_tool"}
_CUMULATIVE: Final = AggregationTemporality.AGGREGATION_TEMPORALITY_CUMULATIVE

Attributes = Mapping[str, object]


def resource(service: str, namespace: str) -> Resource:
    """What sends the messages.

    Args:
        service: The name of the service.
        namespace: The namespace of the store.
    """
    attributes = {"service.name": service, "service.version": __version__, "mcpguard.namespace": namespace}
    return Resource(attributes=_key_values(attributes))


def spans(rows: Iterable[StoredRow], source: Resource, *, with_user: bool) -> ExportTraceServiceRequest:
    """The spans of calls. A row about lines that are no calls has none.

    The same row always has the same span id, so a backend can tell that it got a span twice.

    Args:
        rows: The rows.
        source: What sends the spans.
        with_user: Whether spans have the user. If not, they do not have why a call is unauthenticated either: the reason may
            have the path of the token, which is in the user's folder.
    """
    message = ExportTraceServiceRequest()
    group = message.resource_spans.add(resource=source)
    scope = group.scope_spans.add(scope=_scope())
    scope.spans.extend(_span(one, with_user=with_user) for one in rows if _is_of_calls(one.row))
    return message


def _is_of_calls(row: Row) -> bool:
    """Whether a row is about a call. One that sums up denials names no tool if they are of several."""
    return "tool" in members(row.context) or row.decision not in {"policy", "invalid"}


def _span(stored: StoredRow, *, with_user: bool) -> Span:
    row, outcome = stored.row, stored.outcome
    context = members(row.context)
    limit = members(row.reported) if row.reported else {}
    error = _error(row.decision, outcome)
    found = record(row) if row.detail or row.decision in REFUSED else {}
    name = str(found.get("id") or audit_id(str(context["session"]), row.seq))
    attributes = _METHOD | {
        "gen_ai.tool.name": context.get("tool"),
        "gen_ai.agent.name": context.get("agent"),
        "jsonrpc.request.id": None if row.request_id is None else _id_text(row.request_id),
        "network.transport": "pipe",
        "error.type": error,
        "mcpguard.audit_id": name,
        "mcpguard.session": context["session"],
        "mcpguard.server": context.get("server"),
        "mcpguard.decision": row.decision,
        "mcpguard.axis": axis_of(row.decision, row.reported, row.detail),
        "mcpguard.rule": limit.get("rule") if with_user else _without_user(limit.get("rule")),
        "mcpguard.limit": limit_text(limit) if "limit" in limit else None,
        "mcpguard.reason": found.get("reason") if with_user or row.decision != "unauthenticated" else None,  # see `spans`
        "mcpguard.cost": found.get("cost"),
        "mcpguard.in_flight": found.get("in_flight"),
        "mcpguard.waited_ms": found.get("waited_ms"),
        "mcpguard.remaining": row.remaining,
        "mcpguard.retry_after_ms": row.retry_after_ms,
        "mcpguard.repeats": row.repeats,
        "mcpguard.outcome": outcome,
        "user.name": context.get("user") if with_user else None,
    }
    begin_ns = row.time_us * 1000
    return Span(
        trace_id=bytes.fromhex(row.trace_id or f"{context['session']}{row.seq:016x}"),
        span_id=blake2b(name.encode(), digest_size=8).digest(),
        name=_text(f"tools/call {context['tool']}") if "tool" in context else "tools/call",
        kind=Span.SpanKind.SPAN_KIND_SERVER,
        start_time_unix_nano=begin_ns,
        end_time_unix_nano=begin_ns + 1000 * (stored.duration_us or 0),
        attributes=_key_values(attributes),
        status=Status(code=Status.StatusCode.STATUS_CODE_ERROR, message=error) if error else Status(),
    )


def _without_user(rule: object) -> object:
    """A rule's text, with a mask in place of the user that it names. A pattern of users stays."""
    return _USER.sub(f"user={MASK}", rule) if isinstance(rule, str) else rule


def _error(decision: str, outcome: str | None) -> str | None:
    return decision if decision in REFUSED else outcome if outcome in FAILED else None


def _id_text(request_id: str) -> str:
    """A request's id as text. An id that was cut is not JSON."""
    try:
        found = json.loads(request_id)
    except ValueError:
        return request_id
    return found if isinstance(found, str) else request_id


class _Duration:
    """A histogram of one series."""

    def __init__(self) -> None:
        self.buckets = [0] * (len(BOUNDS_S) + 1)
        self.sum_s = 0.0

    def add(self, duration_s: float) -> None:
        self.buckets[bisect_left(BOUNDS_S, duration_s)] += 1
        self.sum_s += duration_s


_Series = tuple[tuple[str, object], ...]
"""The attributes of a series, in a form that can be a key."""


def _series(attributes: Attributes) -> _Series:
    return tuple((key, value) for key, value in attributes.items() if value is not None)


_OVERFLOW: Final = _series({"otel.metric.overflow": True})


class Metrics:
    """The metrics since this process began: decisions, and durations of calls.

    Args:
        begin_us: The beginning, wall-clock time.
        with_user: Whether series are by user, too.
    """

    def __init__(self, begin_us: int, *, with_user: bool) -> None:
        self._begin_ns = 1000 * begin_us
        self._with_user = with_user
        self._decisions: dict[_Series, int] = {}
        self._durations: dict[_Series, _Duration] = {}

    def add(self, rows: Iterable[StoredRow]) -> None:
        """Count rows."""
        for one in rows:
            row, outcome = one.row, one.outcome
            if row.decision == "policy":
                continue
            context = members(row.context)
            agent = Agent.split(str(context.get("agent", "")))
            server, tool = context.get("server"), context.get("tool")
            user = {"user.name": context.get("user") if self._with_user else None}
            series = _series(
                {
                    "mcpguard.decision": row.decision,
                    "mcpguard.axis": axis_of(row.decision, row.reported, row.detail),
                    "mcpguard.server": server,
                    "gen_ai.tool.name": tool,
                    "mcpguard.tier": agent.tier if agent else None,
                    **user,
                }
            )
            series = _bounded(self._decisions, series)
            self._decisions[series] = self._decisions.get(series, 0) + (row.repeats or 1)
            if one.duration_us is not None:
                error = _error(row.decision, outcome)
                names = {"gen_ai.tool.name": tool, "mcpguard.server": server, "error.type": error}
                series = _bounded(self._durations, _series(_METHOD | names | user))
                self._durations.setdefault(series, _Duration()).add(one.duration_us / 1e6)

    def message(self, source: Resource, now_us: int) -> ExportMetricsServiceRequest:
        """The metrics as a message.

        Args:
            source: What sends them.
            now_us: Wall-clock time.
        """
        message = ExportMetricsServiceRequest()
        scope = message.resource_metrics.add(resource=source).scope_metrics.add(scope=_scope())
        times = {"start_time_unix_nano": self._begin_ns, "time_unix_nano": 1000 * now_us}
        if self._decisions:
            counter = scope.metrics.add(
                name="mcpguard.decisions", unit="{call}", description="Calls by the decision on them."
            ).sum
            counter.aggregation_temporality, counter.is_monotonic = _CUMULATIVE, True
            for series, calls in self._decisions.items():
                counter.data_points.add(attributes=_key_values(dict(series)), as_int=calls, **times)
        if self._durations:
            histogram = scope.metrics.add(
                name="mcp.server.operation.duration", unit="s", description="The time from a call to its answer."
            ).histogram
            histogram.aggregation_temporality = _CUMULATIVE
            for series, found in self._durations.items():
                histogram.data_points.add(
                    attributes=_key_values(dict(series)),
                    count=sum(found.buckets),
                    sum=found.sum_s,
                    bucket_counts=found.buckets,
                    explicit_bounds=BOUNDS_S,
                    **times,
                )
        return message


def _bounded(known: Mapping[_Series, Any], series: _Series) -> _Series:
    return series if series in known or len(known) < MAX_SERIES else _OVERFLOW


def _scope() -> InstrumentationScope:
    return InstrumentationScope(name="mcpguard", version=__version__)


def _key_values(attributes: Attributes) -> list[KeyValue]:
    return [KeyValue(key=key, value=_value(value)) for key, value in attributes.items() if value is not None]


def _value(value: object) -> AnyValue:
    if isinstance(value, bool):
        return AnyValue(bool_value=value)
    if isinstance(value, int):
        return AnyValue(int_value=value)
    return AnyValue(string_value=_text(value))


def _text(value: object) -> str:
    """A text without lone surrogates, which no message can hold."""
    return str(value).encode(errors="replace").decode()
