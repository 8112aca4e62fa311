"""How long one call takes when the client waits for each answer before it sends the next call.

Most of that time is waking the next process up, and waking one on an idle CPU takes several times as long as one on the
same CPU. Left alone, the scheduler puts client and server now on one CPU, now on two: the bare server's median jumps
between 7 and 48 us in one run. So the processes are given places, the same for all variants.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from .effort import Effort
from .report import Row, Section, added, medians, memory_row, percentile
from .session import Session, ping_pong
from .variants import BARE, BENCH_SERVER, GUARD, LEAST, PROGRAMS, SDK_SERVER, Variant
from .wrappers import OUTAGE, redis

PLACES = {
    "split": "client on one CPU, the rest on another",
    "one": "all on one CPU",
    "free": "placed by the scheduler",
}
WARM_UP = 200
PACE_US = 20_000
SETTLE = 20  # calls at the start of each round that are not counted: another variant had the caches
ASKING = "asking"


class Times(NamedTuple):
    """The times of each call in microseconds, by variant and round, and the most memory that each took."""

    rounds_us: Mapping[str, Sequence[Sequence[float]]]
    peaks_kib: Mapping[str, float]

    def of_rounds(self, percent: float) -> dict[str, list[float]]:
        """A percentile of each round."""
        return {name: [percentile(one, percent) for one in rounds] for name, rounds in self.rounds_us.items()}


def measure(variants: Sequence[Variant], effort: Effort, folder: Path) -> list[Section]:
    """Calls to a server that answers at once, so that nothing but what is added counts."""
    return _sections("calls one after another", BENCH_SERVER, ("split", "one"), variants, effort.calls, folder)


def measure_paced(variants: Sequence[Variant], effort: Effort, folder: Path) -> list[Section]:
    """The same at the pace of an agent: between two calls all caches are lost."""
    return _sections("a call every 20 ms", BENCH_SERVER, ("split", "one"), variants, effort.paced, folder, PACE_US)


def measure_sdk(variants: Sequence[Variant], effort: Effort, folder: Path) -> list[Section]:
    """Calls to a server as people write them: a millisecond of its work between two calls takes the caches from the rest."""
    return _sections("calls to a server on the Python SDK", SDK_SERVER, ("split", "free"), variants, effort.sdk, folder)


def measure_redis(effort: Effort, folder: Path, guard: Variant = GUARD) -> list[Section]:
    """Calls with the counters on a server, beside one round trip to that server in the same run."""

    def start(stack: ExitStack, home: Path) -> list[Session]:
        server = stack.enter_context(redis(home))
        does_nothing = server.command("SCRIPT", "LOAD", "return 1").split(b"\r\n")[1].decode()
        asking = Variant(ASKING, (*LEAST.prefix[:-1], str(PROGRAMS / "asking_relay.py"), str(server.port), does_nothing))
        on_redis = replace(guard, env={**guard.env, "MCPGUARD_STORE": server.url})
        return [stack.enter_context(one.start(BENCH_SERVER, home)) for one in (BARE, LEAST, asking, on_redis)]

    sections = []
    for place in ("split", "one"):
        p50 = _take_turns(start, place, effort.calls, folder / place).of_rounds(50)
        rows = [
            Row("added to p50, us", added(p50, BARE.name), 1),
            Row("one round trip there, us", {GUARD.name: added(p50, LEAST.name)[ASKING]}, 1),
        ]
        sections.append(Section(f"calls one after another, counters on Redis, {PLACES[place]}", rows))
    return sections


def _sections(
    title: str,
    server: Sequence[str],
    places: Sequence[str],
    variants: Sequence[Variant],
    effort: tuple[int, int],
    folder: Path,
    pause_us: int = 0,
) -> list[Section]:
    def start(stack: ExitStack, home: Path) -> list[Session]:
        return [stack.enter_context(variant.start(server, home)) for variant in variants]

    sections = []
    for place in places:
        times = _take_turns(start, place, effort, folder / place, pause_us)
        p50, p99 = times.of_rounds(50), times.of_rounds(99)
        all_us = {name: [time for one in rounds for time in one] for name, rounds in times.rounds_us.items()}
        rows = [
            Row("p50, us", medians(p50), 1),
            Row("p99.9 of all, us", {name: percentile(values, 99.9) for name, values in all_us.items()}, 1),
            Row("added to p50, us", added(p50, BARE.name), 1),
            Row("added to p99, us", added(p99, BARE.name), 1),
            memory_row(times.peaks_kib),
        ]
        sections.append(Section(f"{title}, {PLACES[place]}", rows))
    return sections


def _take_turns(
    start: Callable[[ExitStack, Path], list[Session]], place: str, effort: tuple[int, int], folder: Path, pause_us: int = 0
) -> Times:
    rounds, count = effort
    settle = 1 if pause_us else SETTLE
    with ExitStack() as stack:
        client_cpus, other_cpus = stack.enter_context(cpus(place))
        os.sched_setaffinity(0, other_cpus)  # what is started from here on inherits it
        sessions = start(stack, folder)
        os.sched_setaffinity(0, client_cpus)
        for session in sessions:
            session.handshake()
            ping_pong(session, 1, WARM_UP)
        found: dict[str, list[list[float]]] = {session.name: [] for session in sessions}
        for number in range(rounds):
            first_id = 1 + WARM_UP + number * (settle + count)
            for session in sessions:
                found[session.name].append(ping_pong(session, first_id, settle + count, pause_us)[settle:])
        for session in sessions:
            if session.has_said(OUTAGE):
                raise session.failure("lost its store, and counted on its own")
        return Times(found, {session.name: session.peak_kib() for session in sessions if session.name != BARE.name})


@contextmanager
def cpus(place: str) -> Iterator[tuple[set[int], set[int]]]:
    """The CPUs for the client and for all else; afterwards this thread has its own again."""
    allowed = os.sched_getaffinity(0)
    first, last = {min(allowed)}, {max(allowed)}
    try:
        yield {"split": (first, last), "one": (first, first), "free": (allowed, allowed)}[place]
    finally:
        os.sched_setaffinity(0, allowed)
