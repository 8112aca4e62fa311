"""That every figure of the manual can be made, whatever it is; and that a regression is told from a busy machine."""

import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from tests.end_to_end.host import PATIENT_MS
from tests.pages import renewed

from . import regression
from .__main__ import NAMES, measure
from .regression import check
from .rounds import PAGE, Effort, markdown
from .session import BenchmarkError
from .variants import GUARD, Variant

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the benchmarks read /proc")

TINY = Effort(0.02, wrappers=(1, 2))


def test_every_figure_of_the_manual_is_measured_and_has_its_place(tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text(f"[store]\ntimeout_ms = {PATIENT_MS}\n")
    guard = replace(GUARD, env={**GUARD.env, "MCPGUARD_CONFIG": str(config)})
    measured = measure([name for name in NAMES if name != "sdk"], tmp_path, TINY, guard=guard)
    page = PAGE.read_text(encoding="utf-8").replace("1 / 4 / 16 clients", "1 / 2 clients")
    made = renewed(page, "figures", markdown(measured))
    heads = [re.findall(r"^\| ([^|]*) \|", text, re.MULTILINE) for text in (made, page)]
    assert heads[0] == [head for head in heads[1] if " SDK" not in head], "a server on the SDK takes long to start"


def test_a_command_that_fails_is_named_with_what_it_said(tmp_path: Path) -> None:
    wrong = Variant("wrong", ("/bin/sh", "-c", "echo no such option >&2; exit 2"))
    with pytest.raises(BenchmarkError, match=r"(?s)wrong .*no such option"), wrong.start((), tmp_path) as session:
        session.handshake()


# A regression is told from a busy machine

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
