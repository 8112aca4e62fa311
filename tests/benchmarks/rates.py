"""How much goes through in a second: calls that do not wait for answers, denials, bytes, and calls of many wrappers."""

import json
import multiprocessing
import re
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from multiprocessing.synchronize import Barrier
from pathlib import Path
from statistics import median

from tests.redis_servers import running

from .calls import memory_mib, started
from .rounds import Effort, Row, beside, take_turns
from .session import Session, echo_call, ping_pong
from .variants import BENCH_SERVER, GUARD, Variant, prepared

ROUND_S = 0.5  # that one variant should take in one round
TRY_CALLS = 4000
CALLS = (10_000, 1 << 62)  # so many in a round, so that thousands can be under way
CALLS_A_WRITE = 100  # so that the client is not what is measured
PROBE_BYTES = 8 << 20
END = b"stream complete"
TOGETHER_S = 5
AT_ONCE = 20
READY_S = 120

_RESULT = re.compile(rb'"id":\s*(\d+),\s*"result":')
_DENIAL = re.compile(rb'"id":\s*(\d+),\s*"error":')


def measure(variants: Sequence[Variant], effort: Effort, folder: Path) -> list[Row]:
    """Calls when the client does not wait for answers, so that thousands are under way; and a loop that is denied."""
    with started(variants, BENCH_SERVER, "free", folder) as sessions:
        alone_mib = memory_mib(sessions)
        calls = _rates(sessions, flood, effort, TRY_CALLS, CALLS)
        memory = beside(alone_mib, memory_mib(sessions))
    guards = [one for one in variants if one.name == GUARD.name]
    with started(guards, BENCH_SERVER, "free", folder / "denials") as sessions:
        for session in sessions:
            use_up(session)
        denials = _rates(sessions, partial(flood, is_denied=True), effort, TRY_CALLS, CALLS)
        denials_mib = memory_mib(sessions)
    return [
        Row("calls per second, if thousands of calls wait for answers", beside(calls)),
        Row("denials per second, of a client that does not wait", beside(denials)),
        Row("resident memory at its peak, one call at a time / thousands of calls waiting", memory, "MiB"),
        Row("resident memory at its peak in a storm of denials", beside(denials_mib), "MiB"),
    ]


def measure_streams(variants: Sequence[Variant], effort: Effort, folder: Path) -> list[Row]:
    """Bytes from the server to the client, in frames that are each one write of the server."""
    with started(variants, BENCH_SERVER, "free", folder) as sessions:
        large, small = (
            _rates(sessions, partial(stream, frame_bytes), effort, PROBE_BYTES, (1, 1 << 30))
            for frame_bytes in (1 << 20, 1 << 16)
        )
    rates = {name: [rate / 1e6 for rate in of] for name, of in beside(large, small).items()}
    return [Row("server → client, frames of 1 MiB / 64 KiB", rates, "MB/s")]


def _rates(
    sessions: Sequence[Session], run: Callable[[Session, int], float], effort: Effort, probe: int, bounds: tuple[int, int]
) -> dict[str, float]:
    """How much of something goes through each session in a second. Each gets as much as takes it the time of a round."""
    seconds, (least, most) = ROUND_S * effort.share, bounds
    amounts = {one.name: min(most, max(least, int(probe / run(one, probe) * seconds))) for one in sessions}
    rates = take_turns(sessions, effort.of(5), lambda one: amounts[one.name] / run(one, amounts[one.name]))
    return {name: median(values) for name, values in rates.items()}


def use_up(session: Session) -> None:
    """Make the call that the limit of the tool `full` admits."""
    session.write(echo_call(session.ids(1)[0], b"full"))
    session.read()


def flood(session: Session, count: int, *, is_denied: bool = False) -> float:
    """Write calls, perhaps of a tool whose limit is used up, while reading the answers; the seconds until the last answer."""
    session.widen_pipes()
    ids = session.ids(count)
    calls = [echo_call(request_id, b"full" if is_denied else b"echo") for request_id in ids]
    writes = [b"".join(calls[at : at + CALLS_A_WRITE]) for at in range(0, count, CALLS_A_WRITE)]
    answered = 0
    chunks: list[bytes] = []
    with ThreadPoolExecutor(1) as pool:
        before = time.perf_counter()
        writing = pool.submit(list, map(session.write, writes))
        while answered < count:
            chunk = session.read()
            answered += chunk.count(b"\n")
            chunks.append(chunk)
        seconds = time.perf_counter() - before
        writing.result()
    what = _DENIAL if is_denied else _RESULT
    found = [int(one) for one in what.findall(b"".join(chunks))]
    if sorted(found) != list(ids):
        wanted = "a denial" if is_denied else "a result"
        raise session.failure(f"answered {len(set(found) & set(ids))} of {count} calls with {wanted}")
    return seconds


def stream(frame_bytes: int, session: Session, total_bytes: int) -> float:
    """Have the server send about `total_bytes`; the seconds from the request to the last byte."""
    frames = max(1, total_bytes // frame_bytes)
    params = {"name": "stream", "arguments": {"frame_bytes": frame_bytes, "frames": frames}}
    request = {"jsonrpc": "2.0", "id": session.ids(1)[0], "method": "tools/call", "params": params}
    received = 0
    tail = b""
    before = time.perf_counter()
    session.write(json.dumps(request).encode() + b"\n")
    while END not in tail or not tail.endswith(b"\n"):
        chunk = session.read()
        received += len(chunk)
        tail = (tail + chunk)[-200:] if len(chunk) < 200 else chunk[-200:]
    seconds = time.perf_counter() - before
    if received < frames * frame_bytes:
        raise session.failure(f"lost bytes: {received} came of at least {frames * frame_bytes}")
    return seconds


def measure_wrappers(effort: Effort, folder: Path, guard: Variant = GUARD) -> list[Row]:
    """Calls of 1 to 16 wrappers that share a store, each with a client that waits for its answers."""
    values: dict[str, list[float]] = {}
    with running(folder / "redis", "--appendonly", "yes") as server:
        for name, env in ((GUARD.name, {}), ("the same, one Redis:", {"MCPGUARD_STORE": server.url})):
            on_store = replace(guard, env={**guard.env, **env})
            values[name] = []
            for number in effort.wrappers:
                rates = _together(on_store, number, TOGETHER_S * effort.share, folder / name / str(number))
                values[name].append(sum(rates))
                share = min(rates) * number / sum(rates)
                slowest = f"the slowest had {share:.2f} of its share"
                print(f"  {name.rstrip(':')}, {number} at once: {slowest}", file=sys.stderr, flush=True)
    clients = " / ".join(map(str, effort.wrappers))
    return [Row(f"calls per second, {clients} clients that wait for each answer, one SQLite file", values)]


def _together(variant: Variant, number: int, seconds: float, folder: Path) -> list[float]:
    """The calls a second of each of a number of clients, which are processes that begin at the same time."""
    prepared(variant, folder)
    context = multiprocessing.get_context("spawn")
    with context.Pool(number, _set_barrier, [context.Barrier(number)]) as pool:
        clients = [(replace(variant, name=str(at)), seconds, folder) for at in range(number)]
        return pool.starmap(_call_for, clients, chunksize=1)


_barrier: Barrier


def _set_barrier(barrier: Barrier) -> None:
    global _barrier
    _barrier = barrier


def _call_for(variant: Variant, seconds: float, folder: Path) -> float:
    with variant.start(BENCH_SERVER, folder) as session:
        session.handshake()
        ping_pong(session, AT_ONCE)
        _barrier.wait(READY_S)
        calls = 0
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            ping_pong(session, AT_ONCE)
            calls += AT_ONCE
        session.check_store()
        return calls / seconds
