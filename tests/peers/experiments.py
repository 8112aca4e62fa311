"""The experiments, the same for every limiter."""

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Final, NamedTuple

from tests.benchmarks.rounds import percentile
from tests.benchmarks.session import BenchmarkError, ping_pong

from .trial import Answer, Client, Trial, avoid_edge, begin_minute, most_within, sleep_until

CALLS: Final = 60
WINDOW_S: Final = 60  # some limiters have no other window

PROCESSES: Final = 16
KILLS: Final = 5
POLL_S: Final = 0.1

Cells = dict[str, str]
"""What an experiment found, by the name of the column."""

ONE, SIXTEEN = "passed, 1 process", f"passed, {PROCESSES} processes"
EDGE, KILLED = "passed, at a window's edge", f"passed, process killed {KILLS} times"
SAYS, TIME = "a denial's retry time / truth", "time of a call, p50 / p99"


def one_process(trial: Trial) -> Cells:
    """Calls as fast as possible, then ten a second: how many reach the server, and when the first after a denial."""
    with _clients(trial, 1) as (client,):
        begin_minute()
        client.burst(3 * CALLS)
        denial, passed = _denied(client), None
        while time.monotonic() < denial.at_s + 70:
            time.sleep(POLL_S)
            answer = client.call()
            passed = passed or (None if answer.denied else answer)
    said_s = trial.said_s(denial)
    truth = f"{passed.at_s - denial.at_s:.1f} s" if passed else "over 70 s"
    return {ONE: _most(trial), SAYS: "says nothing" if said_s is None else f"{said_s:.1f} s / {truth}"}


def _denied(client: Client) -> Answer:
    for _ in range(2 * CALLS):
        answer = client.call()
        if answer.denied:
            return answer
    raise BenchmarkError(f"{client.name} denies nothing")


def at_an_edge(trial: Trial) -> Cells:
    """A burst shortly before a window ends and one shortly after it, whether it began with a minute or with a call."""
    with _clients(trial, 1) as (client,):
        minute_s = begin_minute()
        client.call()
        sleep_until(minute_s + 50)
        client.burst(CALLS + 5)
        sleep_until(minute_s + 61)
        client.burst(CALLS + 5)
    return {EDGE: _most(trial)}


def with_kills(trial: Trial) -> Cells:
    """Processes of the limiter, one after another, each killed with calls in flight, and a last one that is not."""
    avoid_edge(40)
    for _ in range(KILLS):
        with _clients(trial, 1) as (client,):
            client.send(CALLS // 2)
            client.answers(CALLS // 4)
            client.kill()
    with _clients(trial, 1) as (client,):
        client.burst(2 * CALLS)
    return {KILLED: _most(trial)}


def many_processes(trial: Trial) -> Cells:
    """Processes of the limiter that run at the same time, each with a client that calls as fast as possible."""
    with _clients(trial, PROCESSES) as clients, ThreadPoolExecutor(PROCESSES) as pool:
        avoid_edge(25)
        list(pool.map(lambda client: client.burst(2 * CALLS), clients))
    return {SIXTEEN: _most(trial)}


@contextmanager
def _clients(trial: Trial, number: int) -> Iterator[list[Client]]:
    with ExitStack() as stack:
        clients = [stack.enter_context(trial.client()) for _ in range(number)]
        for client in clients:
            client.handshake()
        yield clients


def _most(trial: Trial) -> str:
    most = most_within(WINDOW_S, trial.reached())
    if not most:
        raise BenchmarkError("no call reached the server")
    return str(most)


class Experiment(NamedTuple):
    """An experiment, its columns, and how many limiters go through it at once: more, the more it waits."""

    run: Callable[[Trial], Cells]
    columns: Sequence[str]
    at_once: int


EXPERIMENTS: Final = {
    "one_process": Experiment(one_process, (ONE, SAYS), 4),
    "at_an_edge": Experiment(at_an_edge, (EDGE,), 4),
    "with_kills": Experiment(with_kills, (KILLED,), 2),
    "many_processes": Experiment(many_processes, (SIXTEEN,), 1),
}
ROUNDS, CALLS_A_ROUND, SETTLE, OUT_OF_REACH = 30, 40, 5, 1_000_000


def added_time(bare: Trial, trials: Mapping[str, Trial]) -> dict[str, str]:
    """The cell of each: the time of a call as a multiple of its time without one. All take turns, so that all meet one load."""
    cells: dict[str, str] = {}
    found: dict[str, list[float]] = {}
    with ExitStack() as stack:
        clients: dict[str, Client] = {}
        for number in range(ROUNDS):
            for trial in (bare, *trials.values()):
                if trial.name not in cells:
                    try:
                        if not number:
                            clients[trial.name] = _warm(stack.enter_context(trial.client()))
                        found.setdefault(trial.name, []).extend(ping_pong(clients[trial.name], SETTLE + CALLS_A_ROUND)[SETTLE:])
                    except (BenchmarkError, OSError) as error:
                        cells[trial.name] = failed(error)
                        found.pop(trial.name, None)
    if bare.name in cells:
        return dict.fromkeys([bare.name, *trials], cells[bare.name])
    without = found.pop(bare.name)
    p50, p99 = (percentile(without, percent) for percent in (50, 99))
    for name, times_us in found.items():
        cells[name] = f"× {percentile(times_us, 50) / p50:.2f} / × {percentile(times_us, 99) / p99:.2f}"
    return cells | {bare.name: f"{p50 / 1000:.1f} / {p99 / 1000:.1f} ms, at a load of {os.getloadavg()[0]:.0f}"}


def _warm(client: Client) -> Client:
    client.handshake()
    ping_pong(client, SETTLE)
    return client


def failed(error: Exception) -> str:
    """The cell of an experiment that failed: why, on one line, without a path of this machine."""
    return f"failed: {str(error).splitlines()[0].partition(' /')[0].replace('|', '/')[:120]}"
