"""That the benchmark itself works; what it measures is nobody's assertion."""

import os
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.end_to_end.host import PATIENT_MS

from . import __main__ as program
from . import calls, pipelined, redis_calls, streams, wrappers
from .effort import Effort
from .report import Row, Section, added, percentile, table
from .session import BenchmarkError
from .variants import BARE, BENCH_SERVER, CAT, GUARD, LEAST, Variant, peer

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the benchmarks read /proc")

TINY = Effort(
    call_rounds=1,
    calls=10,
    paced_rounds=1,
    paced_calls=2,
    sdk_calls=5,
    pipelined_rounds=1,
    pipelined_seconds=0,
    stream_rounds=1,
    stream_seconds=0,
    tiny_starts=1,
    sdk_starts=1,
    wrapper_seconds=0.1,
    flat_rounds=1,
)


@pytest.fixture
def _patient(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The wrappers wait for their stores as long as a busy machine needs."""
    config = tmp_path / "config.toml"
    config.write_text(f"[store]\ntimeout_ms = {PATIENT_MS}\n")
    guard = replace(GUARD, env={**GUARD.env, "MCPGUARD_CONFIG": str(config)})
    for module in redis_calls, wrappers:
        monkeypatch.setattr(module, "GUARD", guard)


def test_every_variant_answers_every_call_and_its_memory_is_read(tmp_path: Path) -> None:
    section = calls.measure([BARE, LEAST], TINY, tmp_path, "split", 0)
    figures = {row.label: row.values for row in section.rows}
    assert set(figures["p50, us"]) == {"bare", "least"}
    assert set(figures["added to p50, us"]) == {"least"}
    assert figures["peak memory, MiB"]["least"] > 1


def test_calls_at_the_pace_of_an_agent_are_measured_by_themselves(tmp_path: Path) -> None:
    section = calls.measure_paced([BARE, LEAST], TINY, tmp_path, "free")
    figures = {row.label: row.values for row in section.rows}
    assert set(figures["added to p50, us"]) == {"least"}
    assert set(figures["p99.9 of all, us"]) == {"bare", "least"}


def test_a_server_on_the_sdk_answers_every_call(tmp_path: Path) -> None:
    section = calls.measure_sdk([BARE, LEAST], TINY, tmp_path, "free")
    figures = {row.label: row.values for row in section.rows}
    assert set(figures["added to p50, us"]) == {"least"}


def test_this_thread_has_its_cpus_again_after_the_calls(tmp_path: Path) -> None:
    before = os.sched_getaffinity(0)
    calls.measure([BARE], TINY, tmp_path, "one", 0)
    assert os.sched_getaffinity(0) == before


def test_thousands_of_calls_are_under_way_when_pipelined(tmp_path: Path) -> None:
    (section,) = pipelined.measure([LEAST], TINY, tmp_path)
    figures = {row.label: row.values for row in section.rows}
    assert figures["most in flight"]["least"] > 1000


def test_denials_are_measured_by_themselves(tmp_path: Path) -> None:
    _, section = pipelined.measure([BARE, GUARD], TINY, tmp_path)
    figures = {row.label: row.values for row in section.rows}
    assert figures["denials/s"]["mcpguard"] > 0


def test_a_stream_is_counted_to_its_last_byte(tmp_path: Path) -> None:
    with CAT.start(BENCH_SERVER, tmp_path) as session:
        session.handshake()
        for shape in streams.SHAPES:
            assert streams.stream(session, shape, 3 << 20) > 0


@pytest.mark.usefixtures("_patient")
def test_calls_with_counters_on_a_server_are_measured_beside_a_round_trip_to_it(tmp_path: Path) -> None:
    section = redis_calls.measure(TINY, tmp_path, "split")
    figures = {row.label: row.values for row in section.rows}
    assert set(figures["p50, us"]) == {"bare", "least", "asking", "mcpguard"}
    assert figures["one round trip there, us"].keys() == {"mcpguard"}


@pytest.mark.usefixtures("_patient")
def test_wrappers_of_both_stores_are_measured_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wrappers, "NUMBERS", (1, 2))
    sections = wrappers.measure(TINY, tmp_path)
    assert [len(section.rows) for section in sections] == [10, 10]
    for section in sections:
        figures = {row.label: row.values for row in section.rows}
        assert set(figures["2 at once, calls/s"]) == {"bare", "mcpguard"}
        assert figures["1 at once, smallest share"] == {"mcpguard": 1}
        assert figures["2 at once, without the store"] == {"mcpguard": 0}
        assert min(figures["2 at once, calls/s"].values()) > 0


def test_a_command_that_fails_is_named_with_what_it_said(tmp_path: Path) -> None:
    broken = Variant("broken", ("/bin/sh", "-c", "echo no such option >&2; exit 2"))
    with pytest.raises(BenchmarkError, match=r"(?s)broken .*no such option"), broken.start((), tmp_path) as session:
        session.handshake()


def test_a_call_that_is_denied_is_not_taken_for_an_answer(tmp_path: Path) -> None:
    denying = Variant("denying", ("/bin/sh", "-c", 'read -r _; echo "{\\"id\\":0,\\"error\\":{}}"; cat'))
    with pytest.raises(BenchmarkError, match="answered request 0 with"), denying.start((), tmp_path) as session:
        session.handshake()


def test_drift_between_rounds_does_not_count_as_added() -> None:
    assert added({"bare": [10, 50, 30], "relay": [15, 54, 36]}, "bare") == {"relay": 5}


def test_the_percentile_is_one_of_the_values() -> None:
    assert percentile(range(1, 101), 99) == 99
    assert percentile([7.0], 99) == 7


def test_the_table_has_80_columns_and_the_ratios_of_mcpguard() -> None:
    rows = [Row("added to p50, us", {"least": 20, "mcpguard": 60, "other": 120}, 1, compared=True)]
    text = table([Section("calls", rows)], ["bare", "least", "cat", "mcpguard", "warden", "other"])
    assert max(map(len, text.splitlines())) == 80
    assert text.splitlines()[-1].split() == ["mcpguard", "/", "this", "3.00", "0.50"]


@pytest.mark.parametrize("text", ["mcp-warden", "=command", "name=", "much_too_long=command"])
def test_a_peer_has_a_name_that_fits_its_column_and_a_command(text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(text)):
        peer(text)


def test_a_third_peer_has_no_room_in_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        program.main(["--peer", "a=x", "--peer", "b=x", "--peer", "c=x"])
    assert "at most two peers" in capsys.readouterr().err


def test_two_variants_cannot_share_a_name(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        program.main(["--peer", "cat=x"])
    assert "cat" in capsys.readouterr().err
