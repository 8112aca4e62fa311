import contextlib
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mcpguard import __version__, config
from mcpguard.errors import ConfigError, McpguardError
from mcpguard.reading import telemetry
from mcpguard.reading.telemetry import Collector, CollectorUnreachable, Exporter, Rejected, SentPosition, Telemetry
from mcpguard.session.audit import Outcome
from mcpguard.stores.api import Options as StoreOptions
from mcpguard.stores.api import Store, Wanted
from mcpguard.stores.sqlite.store import SqliteStore
from tests.reading.receiver import Receiver, receiving, values
from tests.report.test_gather import stored

ANY = Wanted(lambda _: True)
SINCE_EVER = ANY._replace(since_us=1)
SESSION = "00000000000000ab"
KEY = bytes(32)

PATIENCE_S = 0.7
"""Less than the first wait of OpenTelemetry's exporter, so that it sends again only at once (`Retry-After: 0`)."""

CALL = {"mcp.method.name": "tools/call", "gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": "echo"}


class Ended(Exception):
    """Ends an exporter that follows."""


@pytest.fixture(scope="module")
def running() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


class Bench:
    """A store, a receiver, and exports of the one to the other."""

    def __init__(self, folder: Path, receiver: Receiver) -> None:
        receiver.__init__(int(receiver.url.rpartition(":")[2]))  # type: ignore[misc]
        self.folder = folder
        self.receiver = receiver
        self.store = SqliteStore(folder / "mcpguard.db")
        self.said: list[str] = []  # by the last export
        self._seq = 0

    @property
    def spans(self) -> list[dict[str, Any]]:
        return [values(span.attributes) for span in self.receiver.spans]

    def add(
        self, *decisions: str, outcome: str | None = "ok", age_s: float = 0, store: Store | None = None, **members: Any
    ) -> list[int]:
        """Write rows to the store. Calls that were forwarded get an outcome after 250 ms."""
        store = store or self.store
        names = {key: members.pop(key) for key in ("user", "tool") if key in members}
        found = []
        for decision in decisions:
            row = stored(0, decision, **names).row
            context = json.dumps(json.loads(row.context) | {"session": SESSION, "agent": "Claude Code::subagent::x"})
            self._seq += 1
            time_us = time.time_ns() // 1000 - round(age_s * 1e6)
            usual: dict[str, Any] = {"time_us": time_us, "context": context, "seq": self._seq}
            (row_id,) = store.append([row._replace(**usual | members)])
            if outcome and decision in {"allowed", "would_deny"}:
                store.record([Outcome(row_id, outcome, 250_000)])
            found.append(row_id)
        return found

    def replace(self, *decisions: str) -> None:
        """Put another store with these rows in the place of the store."""
        self.store.close()
        for file in self.folder.glob("mcpguard.db*"):
            file.unlink()
        with contextlib.closing(SqliteStore(self.folder / "mcpguard.db", StoreOptions(timeout_ms=20_000))) as new:
            self.add(*decisions, store=new)

    def export(
        self,
        wait: Callable[[float], None] | None = None,
        *,
        wanted: Wanted = ANY,
        with_user: bool = False,
        url: str = "",
    ) -> int:
        """Send the rows of the store, and follow it with these waits if any are given. Returns how many were sent."""
        settings = config.Settings(str(self.folder / "policy.toml"), False, str(self.folder / "mcpguard.db"))
        url = url or self.receiver.url
        self.said = []
        made, collector = Telemetry("mcpguard", "default", with_user=with_user), Collector(url, PATIENCE_S)
        with contextlib.closing(SentPosition(self.folder, settings.address.shown, "default", url)) as position:
            exporter = Exporter(
                settings, made, collector, position, wanted, follow=bool(wait), say=self.said.append, sleep=wait or time.sleep
            )
            with contextlib.suppress(Ended):
                exporter.run()
        return exporter.sent

    def sent(self, *decisions: str, **members: Any) -> list[dict[str, Any]]:
        """Write rows and send them; the attributes of the spans that have come."""
        self.add(*decisions, **members)
        self.export()
        return self.spans


@pytest.fixture
def bench(tmp_path: Path, running: Receiver) -> Iterator[Bench]:
    made = Bench(tmp_path, running)
    yield made
    made.store.close()


def once_more(times: int, then: Callable[[], object] = lambda: None) -> Callable[[float], None]:
    """A wait that does something, and after so many waits ends the exporter."""
    left = [times]

    def wait(_: float) -> None:
        if not left[0]:
            raise Ended
        left[0] -= 1
        then()

    return wait


def test_a_call_is_a_span_by_the_conventions(bench: Bench) -> None:
    trace_id = "4bf92f3577b34da6a3ce929d0e0e4736"
    at_us = time.time_ns() // 1000 - 1_000_000
    bench.add("allowed", request_id='"7"', trace_id=trace_id, remaining=4, time_us=at_us)
    assert bench.export() == 1
    (span,) = bench.receiver.spans
    assert (span.name, span.kind, span.trace_id.hex(), len(span.span_id)) == ("tools/call echo", 2, trace_id, 8)
    assert (span.start_time_unix_nano, span.end_time_unix_nano) == (at_us * 1000, at_us * 1000 + 250_000_000)
    assert span.status.code == 0
    found = values(span.attributes)
    own = {"decision": "allowed", "axis": "user", "limit": "5/1m", "remaining": 4, "outcome": "ok"}
    assert found == found | CALL | {f"mcpguard.{name}": value for name, value in own.items()} | {
        "gen_ai.agent.name": "Claude Code::subagent::x",
        "jsonrpc.request.id": "7",
        "network.transport": "pipe",
    }
    assert "error.type" not in found
    assert bench.receiver.resources == [
        {"service.name": "mcpguard", "service.version": __version__, "mcpguard.namespace": "default"}
    ]


def test_a_span_tells_which_kind_of_limit_decided(bench: Bench) -> None:
    cap = '{"axis":"user","rule":"user=*","limit":2,"counts":"concurrent"}'
    bench.add("rate_limited", reported=cap, detail='{"in_flight":2}')
    denied, waited = bench.sent("allowed", detail='{"waited_ms":1200,"cost":20}')
    assert denied == denied | {"mcpguard.limit": "2-in-flight", "mcpguard.reason": "concurrent", "mcpguard.in_flight": 2}
    assert waited == waited | {"mcpguard.waited_ms": 1200, "mcpguard.cost": 20}
    assert "mcpguard.reason" not in waited


def test_a_span_has_the_id_of_its_row_also_if_denials_share_the_row(bench: Bench) -> None:
    bench.add("allowed", "rate_limited")
    spans = bench.sent("rate_limited", repeats=3, detail=json.dumps({"id": f"{SESSION}-2.1"}))
    ids = [one["mcpguard.audit_id"] for one in spans]
    assert ids == [entry.record["id"] for entry in bench.store.entries()]
    assert ids[2] == f"{SESSION}-2.1"


def test_a_row_that_sums_up_denials_of_several_tools_is_a_span_unless_it_is_of_lines_that_are_no_calls(bench: Bench) -> None:
    context = json.dumps({"namespace": "default", "session": SESSION, "server": "crm"})
    bench.add("rate_limited", "unauthenticated", "invalid", "policy", repeats=3, context=context)
    *of_several, _ = bench.sent("invalid", context=json.dumps(json.loads(context) | {"tool": "search"}))
    *names, last = [span.name for span in bench.receiver.spans]
    assert names == ["tools/call", "tools/call"]
    assert last == "tools/call search", "a call that is not strict JSON-RPC is a call"
    told = [(one["mcpguard.decision"], one["mcpguard.repeats"]) for one in of_several]
    assert told == [("rate_limited", 3), ("unauthenticated", 3)]
    assert not any("gen_ai.tool.name" in one for one in of_several)


def test_a_denial_and_a_failed_call_are_errors(bench: Bench) -> None:
    bench.add("rate_limited", "denied", repeats=3, retry_after_ms=9000)
    spans = bench.sent("allowed", outcome="tool_error")
    assert [one["error.type"] for one in spans] == ["rate_limited", "denied", "tool_error"]
    assert {span.status.code for span in bench.receiver.spans} == {2}
    assert spans[0]["mcpguard.repeats"] == 3


def test_a_call_without_a_trace_has_the_trace_id_of_its_record(bench: Bench) -> None:
    bench.sent("allowed")
    (entry,) = bench.store.entries()
    assert bench.receiver.spans[0].trace_id.hex() == entry.record["trace_id"]


def test_metrics_count_decisions_and_durations(bench: Bench) -> None:
    bench.add("allowed", "allowed", "policy")
    bench.add("rate_limited", repeats=7)
    bench.export()
    names = ("mcpguard.decision", "mcpguard.axis", "mcpguard.server", "gen_ai.tool.name", "mcpguard.tier")
    assert bench.receiver.counts(*names) == {
        ("allowed", "user", "crm", "echo", "subagent"): 2,
        ("rate_limited", "user", "crm", "echo", "subagent"): 7,
    }
    counter = bench.receiver.metrics["mcpguard.decisions"].sum
    assert (counter.is_monotonic, counter.aggregation_temporality) == (True, 2)
    durations = bench.receiver.metrics["mcp.server.operation.duration"]
    assert durations.unit == "s"
    (point,) = durations.histogram.data_points
    assert (point.count, point.sum, list(point.explicit_bounds)) == (2, 0.5, list(telemetry.BOUNDS_S))
    assert point.bucket_counts[telemetry.BOUNDS_S.index(0.5)] == 2
    assert values(point.attributes) == CALL | {"mcpguard.server": "crm"}


@pytest.mark.parametrize("with_user", [False, True])
def test_users_are_named_only_if_asked(bench: Bench, *, with_user: bool) -> None:
    bench.add("allowed", "rate_limited", user="carol@acme.com")
    bench.export(with_user=with_user)
    for sent in (bench.receiver.spans, *bench.receiver.metrics.values()):
        assert ("carol" in str(sent)) is with_user


TOKEN = "there is no token: /home/carol/token does not exist"


@pytest.mark.parametrize(
    ("attribute", "text", "shown"),
    [
        ("rule", "user=carol@acme.com", "user=***"),
        ("rule", "user=carol b. tool=a b", "user=*** tool=a b"),
        ("rule", "user=carol tool=x per=none", "user=*** tool=x per=none"),
        ("rule", "user=*@acme.com tool=x", "user=*@acme.com tool=x"),
        ("rule", "tool=user=x", "tool=user=x"),
        ("reason", TOKEN, None),
    ],
)
def test_a_user_in_a_rule_or_a_path_is_named_only_if_asked(bench: Bench, attribute: str, text: str, shown: str | None) -> None:
    limit = json.dumps({"axis": "user", "rule": text, "limit": 1, "window": "1h"})
    members: dict[str, Any] = (
        {"reported": limit} if attribute == "rule" else {"detail": json.dumps({"axis": "user", "reason": text})}
    )
    for with_user in (False, True):
        bench.add("rate_limited" if attribute == "rule" else "unauthenticated", **members)
        bench.export(with_user=with_user)
    assert [one.get(f"mcpguard.{attribute}") for one in bench.spans] == [shown, text]


def test_a_further_export_goes_on_after_the_last_row(bench: Bench) -> None:
    bench.add("allowed", "denied")
    assert bench.export() == 2
    assert bench.export() == 0
    bench.add("denied")
    assert bench.export() == 1
    assert len({span.span_id for span in bench.receiver.spans}) == 3


def test_a_position_is_kept_for_each_store_namespace_and_collector(tmp_path: Path) -> None:
    places = [("a", "default", "http://x"), ("b", "default", "http://x"), ("a", "n", "http://x"), ("a", "default", "http://y")]
    with contextlib.ExitStack() as stack:
        one, *others = [stack.enter_context(contextlib.closing(SentPosition(tmp_path, *place))) for place in places]
        one.write(7, KEY)
        assert (one.read(KEY), [other.read(KEY) for other in others]) == (7, [None] * 3)


def test_two_processes_do_not_send_the_same_rows(tmp_path: Path) -> None:
    one = SentPosition(tmp_path, "a", "default", "http://x")
    with pytest.raises(McpguardError, match="another process"):
        SentPosition(tmp_path, "a", "default", "http://x")
    one.close()
    SentPosition(tmp_path, "a", "default", "http://x").close()


@pytest.mark.parametrize(("text", "row"), [("", None), ("{", None), ('{"row": null}', None), ("[]", None), ('{"row": 7}', 7)])
def test_a_damaged_position_is_none_and_an_older_versions_is_the_stores(tmp_path: Path, text: str, row: int | None) -> None:
    with contextlib.closing(SentPosition(tmp_path, "a", "default", "http://x")) as position:
        position.path.write_text(text)
        assert position.read(KEY) == row


def test_a_position_behind_the_newest_row_is_of_another_store(bench: Bench) -> None:
    bench.add("denied", "denied")
    address = str(bench.folder / "mcpguard.db")
    with contextlib.closing(SentPosition(bench.folder, address, "default", bench.receiver.url)) as position:
        position.write(1000, bench.store.args_key)
    assert bench.export() == 2


@pytest.mark.parametrize("follow", [False, True])
def test_a_store_that_was_replaced_by_one_with_more_rows_is_sent_from_its_first_row(bench: Bench, *, follow: bool) -> None:
    wait = once_more(0) if follow else None
    bench.sent("denied")
    bench.replace("denied", "denied", "denied")
    assert bench.export(wait) == 3
    assert bench.export(wait) == 0


@pytest.mark.posix
def test_a_store_that_is_replaced_while_it_is_followed_is_not_sent_again(bench: Bench) -> None:
    bench.add("denied")
    assert bench.export(once_more(1, lambda: bench.replace("denied", "denied"))) == 2
    assert bench.export(once_more(0)) == 0


def test_following_begins_with_new_rows_unless_a_time_is_given(bench: Bench) -> None:
    bench.add("denied")
    assert bench.export(once_more(1, lambda: bench.add("allowed"))) == 1
    assert [one["mcpguard.decision"] for one in bench.spans] == ["allowed"]


def test_following_from_a_time_sends_the_rows_since_then(bench: Bench) -> None:
    bench.add("denied", age_s=7200)
    bench.add("denied", age_s=60)
    wanted = ANY._replace(since_us=time.time_ns() // 1000 - 3_600_000_000)
    assert bench.export(once_more(0), wanted=wanted) == 1


def test_a_row_whose_outcome_does_not_come_is_sent_without_a_duration(bench: Bench) -> None:
    bench.add("allowed", outcome=None, age_s=telemetry.OUTCOME_S + 1)
    assert bench.export(once_more(0), wanted=SINCE_EVER) == 1
    assert bench.receiver.spans[0].start_time_unix_nano == bench.receiver.spans[0].end_time_unix_nano
    assert "mcp.server.operation.duration" not in bench.receiver.metrics


def test_rows_are_sent_in_batches(bench: Bench) -> None:
    rows = [
        stored(0, "denied").row._replace(seq=at, context=json.dumps({"session": SESSION, "tool": "t", "namespace": "default"}))
        for at in range(1200)
    ]
    bench.store.append(rows)
    assert bench.export() == 1200
    assert bench.receiver.batches == [512, 512, 176]


@pytest.mark.parametrize("status", [408, 429, 500, 503])
def test_without_following_the_export_gives_up_and_keeps_its_position(bench: Bench, status: int) -> None:
    bench.add("denied")
    bench.receiver.answers = [(status, {})]
    with pytest.raises(CollectorUnreachable, match=f"/v1/traces: status {status}$"):
        bench.export()
    assert bench.export() == 1


@pytest.mark.parametrize("status", [408, 429, 500, 503])
def test_following_never_gives_up_and_tells_of_an_outage_once(bench: Bench, status: int) -> None:
    bench.add("denied")
    bench.receiver.answers = [(status, {"Retry-After": "99999999"})] * 9
    waits: list[float] = []

    def wait(seconds: float) -> None:
        waits.append(seconds)
        if bench.receiver.spans:
            raise Ended

    assert (bench.export(wait, wanted=SINCE_EVER), len(bench.spans), waits[:9]) == (1, 1, [telemetry.AGAIN_S] * 9)
    assert bench.said == [f"{bench.receiver.url}/v1/traces: status {status}; trying again"]


@pytest.mark.parametrize("status", [400, 401, 404, 307])
def test_a_request_that_the_collector_refuses_ends_the_export(bench: Bench, status: int) -> None:
    bench.add("denied")
    bench.receiver.answers = [(status, {"Location": "http://127.0.0.1:1/"})]
    with pytest.raises(Rejected, match=f"status {status}"):
        bench.export(once_more(0), wanted=SINCE_EVER)


def test_a_collector_that_does_not_listen_is_named_without_secrets(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(telemetry.HEADERS, "api-key=hunter2")
    bench.add("denied")
    with pytest.raises(CollectorUnreachable, match=r"http://127\.0\.0\.1:1/v1/traces: no answer") as caught:
        bench.export(url="http://127.0.0.1:1")
    assert "hunter2" not in str(caught.value) + caught.value.hint
    assert caplog.text == ""


def test_headers_come_from_the_environment(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(telemetry.HEADERS, " api-key=a%20b%3D , X-Scope=1 ,")
    assert telemetry.checked_url(bench.receiver.url, os.environ) == bench.receiver.url
    bench.sent("denied")
    assert {one["api-key"] + one["x-scope"] for one in bench.receiver.headers} == {"a b=1"}
    assert {one["content-type"] for one in bench.receiver.headers} == {"application/x-protobuf"}


def test_no_password_from_netrc_is_sent(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    netrc = bench.folder / ".netrc"
    netrc.write_text("default login alice password hunter2\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    monkeypatch.setenv("no_proxy", "*")
    port = int(bench.receiver.url.rpartition(":")[2])
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    bench.add("denied")
    assert bench.export(url=f"http://collector.test:{port}") == 1
    assert not any("authorization" in one for one in bench.receiver.headers)


NO_URLS = ("localhost:4318", "ftp://x", "http://", "http://a b", "http://[", "http://x:99999", "grpc://x:4317")
SECRET_URLS = ("https://me:hunter2@x", "https://x/?key=hunter2", "https://x/#hunter2")
NO_HEADERS = ("hunter2", "=hunter2", "na me=hunter2", "a=x%0Ahunter2", "ä=hunter2", "a=b,hunter2")


@pytest.mark.parametrize(
    ("url", "headers", "told"),
    [
        *((url, "", "not an http or https URL") for url in NO_URLS),
        *((url, "", telemetry.HEADERS) for url in SECRET_URLS),
        *(("https://x", text, telemetry.HEADERS) for text in NO_HEADERS),
    ],
)
def test_a_wrong_url_or_header_is_not_repeated(url: str, headers: str, told: str, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ConfigError) as caught:
        telemetry.checked_url(url, {telemetry.HEADERS: headers})
    said = caught.value.message + caught.value.hint
    assert (told in said, "hunter2" in said) == (True, False)
    assert caplog.text == "", "the library's warning would repeat them"


@pytest.mark.parametrize("name", ["OTEL_EXPORTER_OTLP_HEADERS", "OTEL_EXPORTER_OTLP_METRICS_HEADERS"])
@pytest.mark.parametrize("url", ["http://x", "http://10.0.0.7:4318", "http://127.0.0.1.x", "http://localhost.x"])
def test_headers_are_not_sent_unencrypted_to_another_machine(url: str, name: str) -> None:
    assert telemetry.checked_url(url, {}) == url
    with pytest.raises(ConfigError, match=f"--otlp: {url} would receive {name} unencrypted") as caught:
        telemetry.checked_url(url, {name: "api-key=hunter2"})
    assert caught.value.hint == f"write https://, or unset {name}"
    assert "hunter2" not in caught.value.message + caught.value.hint


@pytest.mark.parametrize("url", ["https://x", "http://localhost:4318", "http://127.0.0.1", "http://[::1]:4318"])
def test_headers_are_sent_over_tls_or_on_this_machine(url: str) -> None:
    assert telemetry.checked_url(url, {telemetry.HEADERS: "api-key=hunter2"}) == url


def test_a_collector_on_this_machine_is_not_reached_through_a_proxy(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)
    bench.add("denied")
    assert bench.export() == 1


def test_a_name_that_is_not_unicode_can_be_sent(bench: Bench) -> None:
    one = stored(0, "denied", user="\ud800", tool="\ud800", trace_id="4bf92f3577b34da6a3ce929d0e0e4736")
    made = Telemetry("\ud800", "n", with_user=True)
    collector = Collector(bench.receiver.url, PATIENCE_S)
    for message in (made.spans([one]), made.metrics([one])):
        assert message
        collector.send(message)
    assert [span.name for span in bench.receiver.spans] == ["tools/call ?"]
    assert bench.receiver.counts("user.name") == {("?",): 1}
