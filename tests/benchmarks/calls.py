"""How long one call takes when the client waits for each answer before it sends the next call.

Most of that time is waking the next process up, and waking one on an idle CPU takes several times as long as one on the
same CPU. Left alone, the scheduler puts client and server now on one CPU, now on two: the bare server's median jumps
between 7 and 48 us in one run. So the processes are given places, the same for all variants.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from .effort import Effort
from .report import Row, Section, added, medians, memory_rows, percentile
from .session import READ_BYTES, Session, echo_call
from .variants import BARE, BENCH_SERVER, SDK_SERVER, Variant

PLACES = {
    "split": "client on one CPU, the rest on another",
    "one": "all on one CPU",
    "free": "placed by the scheduler",
}
WARM_UP = 200
PACE_US = 20_000
SETTLE = 20  # calls at the start of each round that are not counted: another variant had the caches


def measure(variants: Sequence[Variant], effort: Effort, folder: Path, place: str, pause_us: int) -> Section:
    """Calls to a server that answers at once, so that nothing but what is added counts."""
    section = f"calls one after another, {PLACES[place]}"
    return _measure(section, BENCH_SERVER, variants, effort.calls, effort.call_rounds, folder, place, pause_us)


def measure_paced(variants: Sequence[Variant], effort: Effort, folder: Path, place: str) -> Section:
    """The same at the pace of an agent: between two calls all caches are lost."""
    section = f"a call every {PACE_US // 1000} ms, {PLACES[place]}"
    return _measure(section, BENCH_SERVER, variants, effort.paced_calls, effort.paced_rounds, folder, place, PACE_US)


def measure_sdk(variants: Sequence[Variant], effort: Effort, folder: Path, place: str) -> Section:
    """Calls to a server as people write them: a millisecond of its work between two calls takes the caches from the rest."""
    section = f"calls to a server on the Python SDK, {PLACES[place]}"
    return _measure(section, SDK_SERVER, variants, effort.sdk_calls, effort.call_rounds, folder, place, 0)


def _measure(
    section: str,
    server: Sequence[str],
    variants: Sequence[Variant],
    count: int,
    rounds: int,
    folder: Path,
    place: str,
    pause_us: int,
) -> Section:
    p50: dict[str, list[float]] = {variant.name: [] for variant in variants}
    p99: dict[str, list[float]] = {variant.name: [] for variant in variants}
    all_us: dict[str, list[float]] = {variant.name: [] for variant in variants}
    settle = 1 if pause_us else SETTLE
    with ExitStack() as stack:
        client_cpus, other_cpus = stack.enter_context(cpus(place))
        os.sched_setaffinity(0, other_cpus)  # what is started from here on inherits it
        sessions = [stack.enter_context(variant.start(server, folder)) for variant in variants]
        os.sched_setaffinity(0, client_cpus)
        for session in sessions:
            session.handshake()
            ping_pong(session, 1, WARM_UP)
        first_id = 1 + WARM_UP
        for _ in range(rounds):
            for session in sessions:
                times_us = ping_pong(session, first_id, settle + count, pause_us)[settle:]
                all_us[session.name] += times_us
                p50[session.name].append(percentile(times_us, 50))
                p99[session.name].append(percentile(times_us, 99))
            first_id += settle + count
        memory = {session.name: session.memory() for session in sessions if session.name != BARE.name}
    rows = [
        Row("p50, us", medians(p50), 1),
        Row("p99, us", medians(p99), 1),
        Row("p99.9 of all, us", {name: percentile(times, 99.9) for name, times in all_us.items()}, 1, compared=True),
        Row("added to p50, us", added(p50, BARE.name), 1, compared=True),
        Row("added to p99, us", added(p99, BARE.name), 1, compared=True),
        *memory_rows(memory),
    ]
    return Section(section, rows)


@contextmanager
def cpus(place: str) -> Iterator[tuple[set[int], set[int]]]:
    """The CPUs for the client and for all else; afterwards this thread has its own again."""
    allowed = os.sched_getaffinity(0)
    first, last = {min(allowed)}, {max(allowed)}
    try:
        yield {"split": (first, last), "one": (first, first), "free": (allowed, allowed)}[place]
    finally:
        os.sched_setaffinity(0, allowed)


def ping_pong(
    session: Session,
    first_id: int,
    count: int,
    pause_us: int = 0,
    *,
    tools: Sequence[bytes] = (b"echo",),
    between: Callable[[], object] | None = None,
) -> list[float]:
    """Make `count` calls, one at a time; the time of each in microseconds.

    Args:
        session: The command.
        first_id: The first call's id.
        count: How many calls.
        pause_us: How long to sleep before each call.
        tools: The tools to call, in turn.
        between: What to do before each call, outside of its time.
    """
    calls = [echo_call(first_id + at, tools[at % len(tools)]) for at in range(count)]
    answers: list[bytes] = []
    times_us: list[float] = []
    stdin_fd, stdout_fd = session.stdin_fd, session.stdout_fd
    for call in calls:
        if pause_us:
            time.sleep(pause_us / 1e6)
        if between:
            between()
        before = time.perf_counter_ns()
        os.write(stdin_fd, call)
        answer = os.read(stdout_fd, READ_BYTES)
        while answer and not answer.endswith(b"\n"):
            answer += session.read()
        after = time.perf_counter_ns()
        times_us.append((after - before) / 1000)
        answers.append(answer)
    for request_id, answer in enumerate(answers, first_id):
        session.check_answer(answer, request_id)
    return times_us
