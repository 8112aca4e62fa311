"""How long a client waits from starting the command to the answer to `initialize`."""

import time
from collections.abc import Sequence
from pathlib import Path

from .effort import Effort
from .report import Row, Section, added, medians
from .session import INITIALIZE
from .variants import BARE, GUARD, SDK_SERVER, TINY_SERVER, Variant


def measure(variants: Sequence[Variant], effort: Effort, folder: Path) -> list[Section]:
    few = [variant for variant in variants if variant.name in (BARE.name, GUARD.name)]
    kinds = (("tiny server", variants, TINY_SERVER), ("SDK server", few, SDK_SERVER))
    return [_section(*kind, starts, folder) for kind, starts in zip(kinds, effort.starts, strict=True) if starts]


def _section(what: str, variants: Sequence[Variant], server: Sequence[str], starts: int, folder: Path) -> Section:
    times_ms: dict[str, list[float]] = {variant.name: [] for variant in variants}
    for start in range(1 + starts):
        for variant in variants:
            time_ms = first_answer_ms(variant, server, folder)
            if start:  # the first finds cold caches and makes the store
                times_ms[variant.name].append(time_ms)
    rows = [Row("p50, ms", medians(times_ms), 1), Row("added, ms", added(times_ms, BARE.name), 1)]
    return Section(f"start to first answer, {what}", rows)


def first_answer_ms(variant: Variant, server: Sequence[str], folder: Path) -> float:
    before = time.perf_counter()
    with variant.start(server, folder) as session:
        session.write(INITIALIZE)
        session.read_answer(0)
        return (time.perf_counter() - before) * 1000
