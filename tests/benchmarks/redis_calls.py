"""How long one call takes with the counters on a server, beside one round trip to that server in the same run."""

import os
import socket
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from tests.redis_servers import Server

from .calls import PLACES, SETTLE, WARM_UP, cpus, ping_pong
from .effort import Effort
from .report import Row, Section, added, medians, percentile
from .variants import BARE, BENCH_SERVER, GUARD
from .wrappers import redis

_EVAL = b"*3\r\n$7\r\nEVALSHA\r\n$40\r\n%b\r\n$1\r\n0\r\n"


def measure(effort: Effort, folder: Path, place: str) -> Section:
    p50: dict[str, list[float]] = {BARE.name: [], GUARD.name: []}
    trips: list[float] = []
    with ExitStack() as stack:
        client_cpus, other_cpus = stack.enter_context(cpus(place))
        os.sched_setaffinity(0, other_cpus)
        server = stack.enter_context(redis(folder))
        guard = replace(GUARD, env={**GUARD.env, "MCPGUARD_STORE": server.url})
        sessions = [stack.enter_context(variant.start(BENCH_SERVER, folder)) for variant in (BARE, guard)]
        link = stack.enter_context(socket.create_connection(("127.0.0.1", server.port)))
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        question = _EVAL % _loaded(server)
        os.sched_setaffinity(0, client_cpus)
        for session in sessions:
            session.handshake()
            ping_pong(session, 1, WARM_UP)
        first_id = 1 + WARM_UP
        for _ in range(effort.call_rounds):
            for session in sessions:
                times_us = ping_pong(session, first_id, SETTLE + effort.calls)[SETTLE:]
                p50[session.name].append(percentile(times_us, 50))
            os.sched_setaffinity(0, other_cpus)  # where the guard asks from
            trips.append(percentile(_round_trips(link, question, SETTLE + effort.calls)[SETTLE:], 50))
            os.sched_setaffinity(0, client_cpus)
            first_id += SETTLE + effort.calls
    more = added(p50, BARE.name)
    trip = medians({guard.name: trips})
    rows = [
        Row("p50, us", medians(p50), 1),
        Row("added to p50, us", more, 1),
        Row("a round trip, us", trip, 1),
        Row("added beyond it, us", {guard.name: more[guard.name] - trip[guard.name]}, 1),
        Row("added, in round trips", {guard.name: more[guard.name] / trip[guard.name]}, 1),
    ]
    return Section(f"calls one after another, counters on Redis, {PLACES[place]}", rows)


def _loaded(server: Server) -> bytes:
    """The name of a script that does nothing."""
    return server.command("SCRIPT", "LOAD", "return 1").split(b"\r\n")[1]


def _round_trips(link: socket.socket, question: bytes, count: int) -> list[float]:
    times_us = []
    for _ in range(count):
        before = time.perf_counter_ns()
        link.sendall(question)
        link.recv(64)
        times_us.append((time.perf_counter_ns() - before) / 1000)
    return times_us
