"""How many calls a second go through when the client does not wait for answers: thousands are under way at once."""

import re
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from .effort import Effort
from .report import Row, Section, medians, memory_rows
from .session import Session, echo_call
from .variants import BARE, BENCH_SERVER, Variant

TRY_CALLS = 4000
LEAST_CALLS = 10_000  # so that thousands can be under way
CALLS_A_WRITE = 100  # so that the client is not what is measured

_RESULT = re.compile(rb'"id":\s*(\d+),\s*"result":')


def measure(variants: Sequence[Variant], effort: Effort, folder: Path) -> list[Section]:
    rates: dict[str, list[float]] = {variant.name: [] for variant in variants}
    in_flight = dict.fromkeys(rates, 0)
    with ExitStack() as stack:
        sessions = [stack.enter_context(variant.start(BENCH_SERVER, folder)) for variant in variants]
        counts = {}
        for session in sessions:
            session.widen_pipes()
            session.handshake()
            seconds, _ = flood(session, 1, TRY_CALLS)
            counts[session.name] = max(LEAST_CALLS, int(TRY_CALLS / seconds * effort.pipelined_seconds))
        for number in range(effort.pipelined_rounds):
            for session in sessions:
                count = counts[session.name]
                seconds, most = flood(session, 1 + TRY_CALLS + number * count, count)
                rates[session.name].append(count / seconds)
                in_flight[session.name] = max(in_flight[session.name], most)
        memory = {session.name: session.memory() for session in sessions if session.name != BARE.name}
    rows = [Row("calls/s", medians(rates), compared=True), Row("most in flight", in_flight), *memory_rows(memory)]
    return [Section("calls pipelined", rows)]


def flood(session: Session, first_id: int, count: int) -> tuple[float, int]:
    """Write `count` calls as fast as they are taken, while reading the answers.

    Returns:
        Seconds from the first write to the last answer, and the most calls that were under way at once.
    """
    ids = range(first_id, first_id + count)
    writes = [b"".join(map(echo_call, ids[at : at + CALLS_A_WRITE])) for at in range(0, count, CALLS_A_WRITE)]
    answered = 0
    most = 0
    failures: list[Exception] = []

    def write() -> None:
        nonlocal most
        try:
            for number, data in enumerate(writes, 1):
                session.write(data)
                most = max(most, number * CALLS_A_WRITE - answered)
        except Exception as error:
            failures.append(error)

    writer = threading.Thread(target=write, daemon=True)
    chunks: list[bytes] = []
    before = time.perf_counter()
    writer.start()
    while answered < count:
        chunk = session.read()
        answered += chunk.count(b"\n")
        chunks.append(chunk)
    seconds = time.perf_counter() - before
    writer.join()
    if failures:
        raise failures[0]
    results = [int(found) for found in _RESULT.findall(b"".join(chunks))]
    if sorted(results) != list(ids):
        raise session.failure(f"answered {len(set(results) & set(ids))} of {count} calls with a result")
    return seconds, most
