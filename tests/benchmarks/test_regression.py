"""That a regression is told from a busy machine, and what is said about it."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from . import regression
from .regression import check, regressions
from .session import BenchmarkError

REFERENCES = {"calls": 2.0, "memory": 1.5}


def measured(**figures: Sequence[float]) -> Callable[[str], float]:
    """Returns the next figure of a ratio each time."""
    left = {name: iter(values) for name, values in figures.items()}
    return lambda name: next(left[name])


def test_a_quarter_more_than_the_reference_is_no_regression() -> None:
    assert not regressions(REFERENCES, {"calls": 2.5, "memory": 0.1})


def test_more_than_a_quarter_more_is_a_regression_that_names_the_ratio_and_both_figures() -> None:
    assert regressions(REFERENCES, {"calls": 2.52, "memory": 1.5}) == {
        "calls": "calls: mcpguard takes 2.52 times what the yardstick takes, 26% more than the reference of 2.00"
    }


def test_a_ratio_within_its_reference_is_measured_once() -> None:
    assert not check(REFERENCES, measured(calls=[2.1], memory=[1.4]), list)


def test_only_a_ratio_that_was_over_is_measured_again_and_its_lowest_figure_counts() -> None:
    assert not check(REFERENCES, measured(calls=[9, 9, 2.4], memory=[1.4]), list)


def test_a_ratio_that_is_over_each_time_fails_with_its_lowest_figure() -> None:
    (failure,) = check(REFERENCES, measured(calls=[3, 2.6, 9], memory=[1.9, 1.4]), list)
    assert failure.startswith("calls: mcpguard takes 2.60 times")


def test_each_measurement_is_shown_beside_its_reference() -> None:
    said: list[str] = []
    check(REFERENCES, measured(calls=[1.8], memory=[1.5]), said.append)
    assert [line.split() for line in said] == [
        ["calls", "1.80", "reference", "2.00", "-10%"],
        ["memory", "1.50", "reference", "1.50", "+0%"],
    ]


def test_a_ratio_far_below_its_reference_is_shown_with_a_hint_to_renew_it() -> None:
    said: list[str] = []
    assert not check({"calls": 2.0}, measured(calls=[1.5]), said.append)
    assert "--renew" in said[0]


def test_the_checked_in_references_are_those_of_the_ratios_that_are_measured() -> None:
    assert regression.read().keys() == regression.MEASURES.keys()


def test_a_reference_that_is_missing_is_an_error_that_names_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(regression, "REFERENCES", tmp_path / "references.toml")
    regression.write({"memory": 1.5})
    with pytest.raises(BenchmarkError, match="--renew"):
        regression.read()


def test_renewed_references_are_the_middle_of_several_and_are_read_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(regression, "REFERENCES", tmp_path / "references.toml")
    figures = iter([1.0, 9.0, 2.0, 3.0, 2.5] * len(regression.MEASURES))
    regression.write(regression.renewed(lambda _: next(figures)))
    assert regression.read() == dict.fromkeys(regression.MEASURES, 2.5)


@pytest.mark.skipif(sys.platform != "linux", reason="the benchmarks read /proc")
@pytest.mark.parametrize("name", regression.MEASURES)
def test_every_ratio_can_be_measured(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for effort in ("ROUNDS", "PACED_CALLS", "STARTS"):
        monkeypatch.setattr(regression, effort, 1)
    monkeypatch.setattr(regression, "FLOOD", 1000)
    assert regression.measure(name, tmp_path) != 0
