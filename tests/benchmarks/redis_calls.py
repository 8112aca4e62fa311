"""How long one call takes with the counters on a server, beside one round trip to that server in the same run."""

import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from .calls import PLACES, SETTLE, WARM_UP, cpus, ping_pong
from .effort import Effort
from .report import Row, Section, added, medians, percentile
from .variants import BARE, BENCH_SERVER, GUARD, LEAST, PROGRAMS, Variant
from .wrappers import OUTAGE, redis

ASKING = "asking"


def measure(effort: Effort, folder: Path, place: str) -> Section:
    p50: dict[str, list[float]] = {name: [] for name in (BARE.name, LEAST.name, ASKING, GUARD.name)}
    with ExitStack() as stack:
        client_cpus, other_cpus = stack.enter_context(cpus(place))
        os.sched_setaffinity(0, other_cpus)
        server = stack.enter_context(redis(folder))
        does_nothing = server.command("SCRIPT", "LOAD", "return 1").split(b"\r\n")[1].decode()
        asking = (*LEAST.prefix[:-1], str(PROGRAMS / "asking_relay.py"), str(server.port), does_nothing)
        variants: Sequence[Variant] = (
            BARE,
            LEAST,
            Variant(ASKING, asking),
            replace(GUARD, env={**GUARD.env, "MCPGUARD_STORE": server.url}),
        )
        sessions = [stack.enter_context(variant.start(BENCH_SERVER, folder)) for variant in variants]
        os.sched_setaffinity(0, client_cpus)
        for session in sessions:
            session.handshake()
            ping_pong(session, 1, WARM_UP)
        first_id = 1 + WARM_UP
        for _ in range(effort.call_rounds):
            for session in sessions:
                times_us = ping_pong(session, first_id, SETTLE + effort.calls)[SETTLE:]
                p50[session.name].append(percentile(times_us, 50))
            first_id += SETTLE + effort.calls
        if sessions[-1].has_said(OUTAGE):
            raise sessions[-1].failure("lost its store, and counted on its own")
    more = added(p50, BARE.name)
    trip_us = added(p50, LEAST.name)[ASKING]
    rows = [
        Row("p50, us", medians(p50), 1),
        Row("added to p50, us", more, 1),
        Row("one round trip there, us", {GUARD.name: trip_us}, 1),
        Row("added beyond it, us", {GUARD.name: more[GUARD.name] - trip_us}, 1),
        Row("added, in round trips", {GUARD.name: more[GUARD.name] / trip_us}, 1),
    ]
    return Section(f"calls one after another, counters on Redis, {PLACES[place]}", rows)
