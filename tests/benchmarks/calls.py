"""How long one call takes when the client waits for each answer, and how long it waits for what starts anew.

Most of that time is waking the next process up, and waking one on an idle CPU takes several times as long as one on the
same CPU. Left alone, the scheduler puts client and server now on one CPU, now on two: the bare server's median jumps
between 7 and 48 us in one run. So the processes are given places, the same for all variants.
"""

import json
import os
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from tests.redis_servers import running

from .rounds import Effort, Row, added, beside, percentile, take_turns
from .session import INITIALIZE, Session, ping_pong
from .variants import BARE, BENCH_SERVER, GUARD, LEAST, PROGRAMS, SDK_SERVER, Variant, prepared

WARM_UP = 200
PACE_US = 20_000
SETTLE = 20  # calls at the start of each round that are not counted: another variant had the caches
SPLIT_ONE = "on two cores / on one"
ASKING = "asking"

Rounds = Mapping[str, Sequence[Sequence[float]]]
"""The times of calls in microseconds, by variant and round."""


def measure(variants: Sequence[Variant], effort: Effort, folder: Path) -> list[Row]:
    """Calls to a server that answers at once, so that nothing but what is added counts."""
    split, one = take_calls(variants, BENCH_SERVER, folder, effort.of(40), effort.of(500))
    last = [{name: percentile([us for one in of for us in one], 99.9) for name, of in found.items()} for found in (split, one)]
    return [
        Row(f"time added to a call (median), a server that answers at once, {SPLIT_ONE}", more(50, split, one), "µs"),
        Row(f"time added to the 99th percentile of these calls, {SPLIT_ONE}", more(99, split, one), "µs"),
        Row(f"the 99.9th percentile of these calls, {SPLIT_ONE}", beside(*last), "µs"),
    ]


def measure_paced(variants: Sequence[Variant], effort: Effort, folder: Path) -> list[Row]:
    """The same at the pace of an agent: between two calls all caches are lost."""
    split, one = take_calls(variants, BENCH_SERVER, folder, effort.of(10), effort.of(50), pause_us=PACE_US)
    return [Row(f"time added to a call (median), a call every 20 ms, {SPLIT_ONE}", more(50, split, one), "µs")]


def measure_sdk(variants: Sequence[Variant], effort: Effort, folder: Path) -> list[Row]:
    """Calls to a server as people write them: a millisecond of its work between two calls takes the caches from the rest."""
    split, free = take_calls(variants, SDK_SERVER, folder, effort.of(40), effort.of(80), places=("split", "free"))
    text = "time added to a call (median), a server on the Python SDK, on two cores / placed by the scheduler"
    return [Row(text, more(50, split, free), "µs")]


def measure_redis(effort: Effort, folder: Path, guard: Variant = GUARD) -> list[Row]:
    """Calls with the counters on a server, beside one round trip to that server in the same run."""
    with running(folder / "redis", "--appendonly", "yes") as server:
        does_nothing = server.command("SCRIPT", "LOAD", "return 1").split(b"\r\n")[1].decode()
        asking = Variant(ASKING, (*LEAST.prefix[:-1], str(PROGRAMS / "asking_relay.py"), str(server.port), does_nothing))
        on_redis = replace(guard, env={**guard.env, "MCPGUARD_STORE": server.url})
        split, one = take_calls((BARE, LEAST, asking, on_redis), BENCH_SERVER, folder, effort.of(40), effort.of(500))
    round_trip = more(50, split, one, over=LEAST)[ASKING]
    values = {GUARD.name: more(50, split, one)[GUARD.name], "one round trip to it": round_trip}
    return [Row(f"time added to a call (median), counters on Redis, {SPLIT_ONE}", values, "µs")]


def take_calls(
    variants: Sequence[Variant],
    server: Sequence[str],
    folder: Path,
    rounds: int,
    count: int,
    *,
    places: Sequence[str] = ("split", "one"),
    pause_us: int = 0,
) -> Iterator[Rounds]:
    """Rounds of a number of calls, in each place."""
    settle = 1 if pause_us else SETTLE
    for place in places:
        with started(variants, server, place, folder / place) as sessions:
            yield take_turns(sessions, rounds, lambda session: ping_pong(session, settle + count, pause_us)[settle:])


def more(percent: float, *places: Rounds, over: Variant = BARE) -> dict[str, list[float]]:
    """What each variant adds to a percentile of each round, in each place."""
    of_rounds = [{name: [percentile(one, percent) for one in of] for name, of in rounds.items()} for rounds in places]
    return beside(*(added(found, over.name) for found in of_rounds))


@contextmanager
def started(variants: Sequence[Variant], server: Sequence[str], place: str, folder: Path) -> Iterator[list[Session]]:
    """Sessions that are warm, and the client and them in a place. They must still have their store at the end."""
    with ExitStack() as stack:
        client_cpus, other_cpus = stack.enter_context(cpus(place))
        os.sched_setaffinity(0, other_cpus)  # what is started from here on inherits it
        sessions = [stack.enter_context(variant.start(server, folder)) for variant in variants]
        os.sched_setaffinity(0, client_cpus)
        for session in sessions:
            session.handshake()
            ping_pong(session, WARM_UP)
        yield sessions
        for session in sessions:
            session.check_store()


def memory_mib(sessions: Sequence[Session]) -> dict[str, float]:
    return {session.name: session.peak_kib() / 1024 for session in sessions if session.name != BARE.name}


@contextmanager
def cpus(place: str) -> Iterator[tuple[set[int], set[int]]]:
    """The CPUs for the client and for all else: `split`, all on `one`, or `free`. Afterwards this thread has its own again."""
    allowed = os.sched_getaffinity(0)
    first, last = {min(allowed)}, {max(allowed)}
    try:
        yield {"split": (first, last), "one": (first, first), "free": (allowed, allowed)}[place]
    finally:
        os.sched_setaffinity(0, allowed)


PASS = Variant("python -c pass", (sys.executable, "-c", "pass"))

_GIVEN = {
    "hook_event_name": "PreToolUse",
    "session_id": "s",
    "transcript_path": "/t",
    "cwd": "/p",
    "tool_name": "echo",
    "tool_input": {"text": "x"},
    "tool_use_id": "toolu_1",
}


def measure_starts(text: str, variants: Sequence[Variant], server: Sequence[str], starts: int, folder: Path) -> list[Row]:
    """From the start of the command to the answer to `initialize`."""

    def first_answer_ms(variant: Variant) -> float:
        before = time.perf_counter()
        with variant.start(server, folder) as session:
            session.write(INITIALIZE)
            session.read_answer(0)
            return (time.perf_counter() - before) * 1000

    times_ms = _warm(take_turns(variants, 1 + starts, first_answer_ms))
    return [Row(f"first answer later than the bare server's, {text}", beside(added(times_ms, BARE.name)), "ms")]


def measure_hook(effort: Effort, folder: Path, guard: Variant) -> list[Row]:
    """A client's hook from its start to its end, beside an interpreter that does nothing."""
    env = prepared(guard, folder)
    program = str(Path(sysconfig.get_path("scripts")) / "mcpguard")  # as installed
    hook = Variant(GUARD.name, (program, "hook", "claude-code", "--enforce"))

    def run_ms(variant: Variant) -> float:
        before = time.perf_counter()
        subprocess.run(variant.prefix, input=json.dumps(_GIVEN).encode(), env=env, stdout=subprocess.PIPE, check=True)
        return (time.perf_counter() - before) * 1000

    times_ms = _warm(take_turns((PASS, hook), 1 + effort.of(21), run_ms))
    text = "a client's hook decides a call, from its start to its end: beyond `python -c pass`"
    return [Row(text, beside(added(times_ms, PASS.name)), "ms")]


def _warm(times_ms: dict[str, list[float]]) -> dict[str, list[float]]:
    """The times without the first of each, which finds cold caches and makes the store."""
    return {name: values[1:] for name, values in times_ms.items()}
