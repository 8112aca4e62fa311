"""That a regression is told from a busy machine, and what is said about it."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from . import regression
from .regression import check
from .session import BenchmarkError

REFERENCES = {"calls": 2.0, "memory": 1.5}


def measured(**figures: Sequence[float]) -> Callable[[str], float]:
    """Returns the next figure of a ratio each time."""
    left = {name: iter(values) for name, values in figures.items()}
    return lambda name: next(left[name])


def test_only_a_ratio_that_was_over_is_measured_again_and_its_lowest_figure_counts() -> None:
    assert not check(REFERENCES, measured(calls=[9, 9, 2.5], memory=[0.1]), list)
    (failure,) = check(REFERENCES, measured(calls=[3, 2.52, 9], memory=[1.9, 1.4]), list)
    assert failure == "calls: mcpguard takes 2.52 times what the yardstick takes, 26% more than the reference of 2.00"


def test_each_measurement_is_shown_beside_its_reference_and_one_far_below_with_a_hint_to_renew_it() -> None:
    said: list[str] = []
    check(REFERENCES, measured(calls=[1.8], memory=[1.1]), said.append)
    assert said[0].split() == ["calls", "1.80", "reference", "2.00", "-10%"]
    assert said[1].split()[:5] == ["memory", "1.10", "reference", "1.50", "-27%"]
    assert "--renew" in said[1]


def test_the_references_are_those_of_the_ratios_that_are_measured_each_the_middle_of_several(tmp_path: Path) -> None:
    assert regression.read().keys() == regression.MEASURES.keys()
    file = tmp_path / "references.toml"
    figures = iter([1.0, 9.0, 2.0, 3.0, 2.5] * len(regression.MEASURES))
    regression.write(regression.renewed(lambda _: next(figures)), file)
    assert regression.read(file) == dict.fromkeys(regression.MEASURES, 2.5)
    regression.write({"memory": 1.5}, file)
    with pytest.raises(BenchmarkError, match="--renew"):
        regression.read(file)
