"""That the benchmark itself works; what it measures is nobody's assertion."""

import os
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from mcpguard.policy.model import Call
from mcpguard.policy.parse import parse
from mcpguard.session.journal import Journal
from mcpguard.session.verdict import DecisionRequest
from mcpguard.stores.sqlite.reader import Reader
from mcpguard.stores.sqlite.store import SqliteStore
from tests.end_to_end.host import PATIENT_MS

from . import __main__ as program
from . import calls, flat, pipelined, streams, wrappers
from .effort import Effort
from .filling import CHARGES, create, fill_counters, fill_rows, tool_name, user_name
from .report import Section
from .session import BenchmarkError
from .variants import BARE, BENCH_SERVER, CAT, GUARD, LEAST, Variant

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the benchmarks read /proc")

TINY = Effort((1, 10), (1, 2), (1, 5), (1, 0), (1, 0), (1, 1), 0.1, (1, 10))


@pytest.fixture
def guard(tmp_path: Path) -> Variant:
    """mcpguard, which waits for its store as long as a busy machine needs."""
    config = tmp_path / "config.toml"
    config.write_text(f"[store]\ntimeout_ms = {PATIENT_MS}\n")
    return replace(GUARD, env={**GUARD.env, "MCPGUARD_CONFIG": str(config)})


def measured(section: Section) -> dict[str, set[str]]:
    """The variants of each row."""
    return {row.label: set(row.values) for row in section.rows}


@pytest.mark.parametrize("measure", [calls.measure, calls.measure_paced, calls.measure_sdk])
def test_every_variant_answers_every_call_in_both_places_and_this_thread_has_its_cpus_again(
    tmp_path: Path, measure: Callable[[Sequence[Variant], Effort, Path], list[Section]]
) -> None:
    before = os.sched_getaffinity(0)
    sections = measure([BARE, LEAST], TINY, tmp_path)
    assert os.sched_getaffinity(0) == before
    assert len(sections) == 2
    for section in sections:
        rows = measured(section)
        assert rows["p50, us"] == rows["p99.9 of all, us"] == {"bare", "least"}
        assert rows["added to p50, us"] == rows["peak memory, MiB"] == {"least"}


def test_thousands_of_calls_are_under_way_when_pipelined_and_denials_are_measured_by_themselves(tmp_path: Path) -> None:
    (section,) = pipelined.measure([LEAST], TINY, tmp_path)
    figures = {row.label: row.values for row in section.rows}
    assert figures["most in flight"]["least"] > 1000
    _, section = pipelined.measure([BARE, GUARD], TINY, tmp_path)
    assert measured(section)["denials/s"] == {"mcpguard"}


def test_a_stream_is_counted_to_its_last_byte(tmp_path: Path) -> None:
    with CAT.start(BENCH_SERVER, tmp_path) as session:
        session.handshake()
        for frame_bytes in streams.SHAPES.values():
            assert streams.stream(session, frame_bytes, 3 << 20) > 0


def test_calls_with_counters_on_a_server_are_measured_beside_a_round_trip_to_it(tmp_path: Path, guard: Variant) -> None:
    for section in calls.measure_redis(TINY, tmp_path, guard):
        assert measured(section) == {
            "added to p50, us": {"least", "asking", "mcpguard"},
            "one round trip there, us": {"mcpguard"},
        }


def test_wrappers_of_both_stores_are_measured_together(tmp_path: Path, guard: Variant) -> None:
    sections = wrappers.measure(TINY, tmp_path, guard, (1, 2))
    assert [len(section.rows) for section in sections] == [6, 6]
    for section in sections:
        figures = {row.label: row.values["mcpguard"] for row in section.rows}
        assert figures["1 at once, smallest share"] == 1
        assert figures["2 at once, calls/s"] > 0
        assert figures["2 at once, without the store"] == 0


def request(who: Call) -> DecisionRequest:
    return DecisionRequest(who, parse(flat.EACH_USER_AND_TOOL).plan(who), '{"namespace":"default"}')


def test_a_filled_counter_is_the_one_that_a_call_is_charged_on(tmp_path: Path) -> None:
    create(tmp_path / "store.db")
    fill_counters(tmp_path / "store.db", parse(flat.EACH_USER_AND_TOOL), users=3, tools=2)
    call = Call(user_name(2), "bench::interactive::default", "bench", tool_name(1))
    with closing(SqliteStore(tmp_path / "store.db")) as store:
        (verdict,) = store.decide([request(call)], Journal("0" * 16))
        assert verdict.count == CHARGES + 1
        assert sorted(one.used for one in store.held()) == [CHARGES] * 5 + [CHARGES + 1]


def test_rows_that_a_store_was_filled_with_are_read_and_counted_on_from(tmp_path: Path) -> None:
    create(tmp_path / "store.db")
    fill_rows(tmp_path / "store.db", 700, over_s=3600)
    with closing(Reader(tmp_path / "store.db")) as reader:
        entries = list(reader.entries())
    assert [entry.row_id for entry in entries] == list(range(1, 701))
    assert {entry.record["decision"] for entry in entries} == {"allowed"}
    with closing(SqliteStore(tmp_path / "store.db")) as store:
        (verdict,) = store.decide([request(Call("u", "a::b::c", "s", "t"))], Journal("0" * 16))
        assert verdict.row_id == 701
        assert not store.warnings
        with pytest.raises(BenchmarkError):
            flat.wait_for_upkeep(tmp_path / "store.db", 0)
    flat.wait_for_upkeep(tmp_path / "store.db")


def test_each_size_of_each_kind_is_measured(tmp_path: Path) -> None:
    few = {title: points[:2] for title, points in flat.points(quick=True).items()}
    curves = flat.measure(TINY, tmp_path, few)
    assert [curve.title for curve in curves] == list(few)
    for curve in curves:
        assert len(curve.sizes) == len(curve.labels)
        assert {len(values) for values in curve.lines.values()} == {len(curve.labels)}
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("echo no such option >&2; exit 2", r"(?s)wrong .*no such option"),
        ('read -r _; echo "{\\"id\\":0,\\"error\\":{}}"; cat', "answered request 0 with"),
    ],
)
def test_a_command_that_fails_or_denies_is_named_with_what_it_said(tmp_path: Path, command: str, told: str) -> None:
    wrong = Variant("wrong", ("/bin/sh", "-c", command))
    with pytest.raises(BenchmarkError, match=told), wrong.start((), tmp_path) as session:
        session.handshake()


@pytest.mark.parametrize(
    ("peers", "told"),
    [
        (["mcp-warden"], "at most 8 letters"),
        (["=command"], "at most 8 letters"),
        (["name="], "at most 8 letters"),
        (["much_too_long=command"], "at most 8 letters"),
        (["a=x", "b=x", "c=x"], "at most two peers"),
        (["cat=x"], "two variants have the name cat"),
    ],
)
def test_a_peer_has_a_command_a_name_of_its_own_and_a_column(
    peers: Sequence[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        program.main([word for peer in peers for word in ("--peer", peer)])
    assert told in capsys.readouterr().err
