"""Whether mcpguard has become slower or larger: ratios to a program that never changes, in one run, so on any machine.

All processes run on one CPU. Then a call takes as long as its work, since no process has to be woken up on another CPU. A busy
program beside them delays a part of the calls, of both programs. So the 10th percentile of all times is compared, and of the
starts, which take too long to stay undisturbed, the CPU time.

Source: 13 runs, five of them beside a busy program on two CPUs. Most of these ratios were within 8 % of their middle; that of
calls one after another was off by up to 19 %. Medians, processes on two CPUs, and wall-clock times of the start are off by up
to 50 %. With Python 3.13 the ratios are within 8 % of those with 3.11.
"""

import os
import statistics
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Final

from .calls import SETTLE, cpus, started
from .rates import flood, use_up
from .rounds import percentile, take_turns
from .session import INITIALIZE, BenchmarkError, Session, echo_call, ping_pong
from .variants import BARE, BENCH_SERVER, GUARD, TINY_SERVER, YARDSTICK, Variant

REFERENCES: Final = Path(__file__).with_name("references.toml")
MOST: Final = 1.25
"""A ratio may be so many times its reference."""

TRIES: Final = 3
"""How often a ratio is measured before it counts as over: the lowest of them counts."""

RENEWALS: Final = 5
HEAD: Final = """\
# What mcpguard takes, divided by what programs/yardstick.py takes beside it. `python -m tests.benchmarks --check` fails if a
# ratio is a quarter over its reference here. After a change that is meant to cost or to save something, measure them anew on
# a quiet machine: `python -m tests.benchmarks --renew`.
"""

UNDISTURBED: Final = 10
"""The percentile that is compared."""

PACE_S: Final = 0.007  # of three programs that take turns, so that each gets a call every 21 ms
BLOCK: Final = 50  # calls in one write, answered in 2 ms: larger ones are disturbed more often
BLOCKS: Final = 10
ROUNDS: Final = 20
CALLS: Final = 100  # in a round
STARTS: Final = 12
FLOOD: Final = 20_000


_Times = Mapping[str, list[float]]
_DENYING: Final = (YARDSTICK, GUARD)  # the bare server denies nothing
_ALL: Final = (BARE, *_DENYING)


def measure_first_answer(folder: Path) -> float:
    """CPU time from the start to the first answer."""

    def cpu_ns(variant: Variant) -> float:
        with variant.start(TINY_SERVER, folder) as session:
            session.write(INITIALIZE)
            session.read_answer(0)
            return session.cpu_ns()

    times = take_turns(_DENYING, 1 + STARTS, cpu_ns)
    return _ratio({name: values[1:] for name, values in times.items()})  # the first finds cold caches and makes the store


def measure_memory(folder: Path) -> float:
    """Most memory taken, after floods of calls and of denials."""
    with _sessions(folder, _DENYING) as sessions:
        for session in sessions:
            flood(session, FLOOD)
            flood(session, FLOOD, is_denied=True)
        yardstick, guard = (session.peak_kib() for session in sessions)
    return guard / yardstick


MEASURES: Final[Mapping[str, Callable[[Path], float]]] = {
    "calls one after another": lambda folder: _ratio_of_added(_times(folder, _ALL, _one_by_one)),
    "a call every 20 ms": lambda folder: _ratio_of_added(_times(folder, _ALL, _paced, CALLS)),
    "calls pipelined": lambda folder: _ratio_of_added(_times(folder, _ALL, lambda session: _blocks(session, b"echo"))),
    "denials pipelined": lambda folder: _ratio(_times(folder, _DENYING, lambda session: _blocks(session, b"full"))),
    "first answer": measure_first_answer,
    "memory": measure_memory,
}
"""What mcpguard takes, divided by what the yardstick takes: time that is added to calls, and so on."""


@contextmanager
def _sessions(folder: Path, variants: Sequence[Variant]) -> Iterator[list[Session]]:
    with started(variants, BENCH_SERVER, "one", folder) as sessions:
        for session in sessions:
            use_up(session)
        yield sessions


def _times(
    folder: Path, variants: Sequence[Variant], take: Callable[[Session], list[float]], rounds: int = ROUNDS
) -> dict[str, list[float]]:
    with _sessions(folder, variants) as sessions:
        return {name: [*chain(*of_rounds)] for name, of_rounds in take_turns(sessions, rounds, take).items()}


def _one_by_one(session: Session) -> list[float]:
    return ping_pong(session, SETTLE + CALLS)[SETTLE:]


def _paced(session: Session) -> list[float]:
    return ping_pong(session, 1, int(PACE_S * 1e6))


def _blocks(session: Session, tool: bytes) -> list[float]:
    """The times of blocks of calls, each written at once, to the last answer."""
    blocks = [b"".join(echo_call(request_id, tool) for request_id in session.ids(BLOCK)) for _ in range(BLOCKS)]
    times = []
    for block in blocks:
        before = time.perf_counter()
        session.write(block)
        answers = 0
        while answers < BLOCK:
            answers += session.read().count(b"\n")
        times.append(time.perf_counter() - before)
    return times


def _ratio(times: _Times) -> float:
    return percentile(times[GUARD.name], UNDISTURBED) / percentile(times[YARDSTICK.name], UNDISTURBED)


def _ratio_of_added(times: _Times) -> float:
    bare = percentile(times[BARE.name], UNDISTURBED)
    return _ratio({name: [value - bare for value in values] for name, values in times.items()})


def read(file: Path = REFERENCES) -> dict[str, float]:
    references: dict[str, float] = tomllib.loads(file.read_text(encoding="utf-8"))
    if references.keys() != MEASURES.keys():
        raise BenchmarkError(f"{file.name} has not the ratios that are measured: renew it with --renew")
    return references


def renewed(measure: Callable[[str], float]) -> dict[str, float]:
    """New references: of each ratio the middle of several."""
    return {name: statistics.median(measure(name) for _ in range(RENEWALS)) for name in MEASURES}


def write(references: Mapping[str, float], file: Path = REFERENCES) -> None:
    lines = [f'"{name}" = {value:.2f}' for name, value in references.items()]
    file.write_text("\n".join([HEAD, *lines, ""]), encoding="utf-8")


def measure(name: str, folder: Path) -> float:
    """One ratio: what mcpguard takes, divided by what the yardstick takes."""
    with cpus("one") as (first, _):
        os.sched_setaffinity(0, first)  # what is started from here on inherits it
        return MEASURES[name](folder)


def check(references: Mapping[str, float], measure: Callable[[str], float], say: Callable[[str], object] = print) -> list[str]:
    """A sentence for each ratio that is over its reference each time, since a busy machine can be the cause of one."""
    found: dict[str, float] = {}
    over = list(references)
    for _ in range(TRIES):
        for name in over:
            now = measure(name)
            found[name] = min(now, found.get(name, now))
            hint = "  much less: --renew, or it can grow back unseen" if now * MOST < references[name] else ""
            say(f"{name:<26}{now:6.2f}  reference {references[name]:.2f}  {now / references[name] - 1:+.0%}{hint}")
        over = [name for name in found if found[name] > references[name] * MOST]
    return [
        f"{name}: mcpguard takes {found[name]:.2f} times what the yardstick takes, {found[name] / references[name] - 1:.0%} "
        f"more than the reference of {references[name]:.2f}"
        for name in over
    ]
