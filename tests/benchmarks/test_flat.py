"""That stores are filled as calls would fill them, and that curves become a picture and tables."""

import sys
from contextlib import closing
from pathlib import Path
from xml.etree import ElementTree

import pytest

from mcpguard.policy.model import Call
from mcpguard.policy.parse import parse
from mcpguard.session.journal import Journal
from mcpguard.session.verdict import DecisionRequest
from mcpguard.stores.sqlite.reader import Reader
from mcpguard.stores.sqlite.store import SqliteStore

from . import flat
from .filling import CHARGES, create, fill_counters, fill_rows, tool_name, user_name
from .session import BenchmarkError
from .test_smoke import TINY

CURVES = [
    flat.Curve("rules", ["10", "1,000,000"], [10, 1_000_000], [100, 120], [200, 190], [300, 900], [50, 51]),
    flat.Curve("audit rows", ["1", "20 × 5"], [1, 100], [100, 130], [200, 190], [300, -3], [50, 51]),
]


def test_a_filled_counter_is_the_one_that_a_call_is_charged_on(tmp_path: Path) -> None:
    policy = parse(flat.EACH_USER_AND_TOOL)
    create(tmp_path / "store.db")
    fill_counters(tmp_path / "store.db", policy, users=3, tools=2)
    call = Call(user_name(2), "bench::interactive::default", "bench", tool_name(1))
    with closing(SqliteStore(tmp_path / "store.db")) as store:
        (verdict,) = store.decide([DecisionRequest(call, policy.plan(call), '{"namespace":"default"}')], Journal("0" * 16))
        assert verdict.count == CHARGES + 1
        assert sorted(one.used for one in store.held()) == [CHARGES] * 5 + [CHARGES + 1]


def test_rows_that_a_store_was_filled_with_are_read_and_counted_on_from(tmp_path: Path) -> None:
    create(tmp_path / "store.db")
    fill_rows(tmp_path / "store.db", 700, over_s=3600)
    with closing(Reader(tmp_path / "store.db")) as reader:
        entries = list(reader.entries())
    assert [entry.row_id for entry in entries] == list(range(1, 701))
    assert {entry.record["decision"] for entry in entries} == {"allowed"}
    call = Call("u", "a::b::c", "s", "t")
    request = DecisionRequest(call, parse(flat.EACH_USER_AND_TOOL).plan(call), '{"namespace":"default"}')
    with closing(SqliteStore(tmp_path / "store.db")) as store:
        (verdict,) = store.decide([request], Journal("0" * 16))
        assert verdict.row_id == 701
        assert not store.warnings


def test_a_round_waits_until_the_calls_of_the_one_before_are_in_the_database(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flat, "PATIENCE_S", 0)
    create(tmp_path / "store.db")
    call = Call("u", "a::b::c", "s", "t")
    request = DecisionRequest(call, parse(flat.EACH_USER_AND_TOOL).plan(call), '{"namespace":"default"}')
    with closing(SqliteStore(tmp_path / "store.db")) as store:
        store.decide([request], Journal("0" * 16))
        with pytest.raises(BenchmarkError):
            flat.wait_for_upkeep(tmp_path / "store.db")
    flat.wait_for_upkeep(tmp_path / "store.db")


@pytest.mark.skipif(sys.platform != "linux", reason="the benchmarks read /proc")
def test_each_size_of_each_kind_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = {title: points[:2] for title, points in flat.points(quick=True).items()}
    monkeypatch.setattr(flat, "points", lambda *, quick: few)
    curves = flat.measure(TINY, tmp_path, quick=True)
    assert [curve.title for curve in curves] == list(few)
    for curve in curves:
        assert len(curve.sizes) == len(curve.labels)
        assert {len(values) for values in curve.lines.values()} == {len(curve.labels)}
    assert not list(tmp_path.iterdir())


def test_the_picture_is_xml_with_every_point_inside_of_it() -> None:
    root = ElementTree.fromstring(flat.picture(CURVES))  # noqa: S314 - ours
    width, height = map(float, root.attrib["viewBox"].split()[2:])
    circles = list(root.iter("{http://www.w3.org/2000/svg}circle"))
    assert len(circles) == 2 * 2 * 3
    for circle in circles:
        assert 0 < float(circle.attrib["cx"]) < width / 2
        assert 0 < float(circle.attrib["cy"]) < height


def test_a_table_says_how_the_largest_figure_compares_to_that_of_the_smallest_size() -> None:
    assert "| rules | 10 | 1,000,000 | most / first |\n|---|---:|---:|---:|\n" in flat.markdown(CURVES)
    assert "| added to the median, µs | 100 | 120 | 1.20 |\n" in flat.markdown(CURVES)
