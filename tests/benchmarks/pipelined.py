"""How many calls a second go through when the client does not wait for answers: thousands are under way at once."""

import re
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from .effort import Effort
from .report import Row, Section, medians, memory_row
from .session import Session, echo_call
from .variants import BARE, BENCH_SERVER, GUARD, Variant

TRY_CALLS = 4000
LEAST_CALLS = 10_000  # so that thousands can be under way
CALLS_A_WRITE = 100  # so that the client is not what is measured

_RESULT = re.compile(rb'"id":\s*(\d+),\s*"result":')
_DENIAL = re.compile(rb'"id":\s*(\d+),\s*"error":')


def measure(variants: Sequence[Variant], effort: Effort, folder: Path) -> list[Section]:
    rates: dict[str, list[float]] = {variant.name: [] for variant in variants}
    with ExitStack() as stack:
        sessions = [stack.enter_context(variant.start(BENCH_SERVER, folder)) for variant in variants]
        counts = {}
        for session in sessions:
            session.widen_pipes()
            session.handshake()
            seconds = flood(session, 1, TRY_CALLS)
            counts[session.name] = max(LEAST_CALLS, int(TRY_CALLS / seconds * effort.pipelined[1]))
        for number in range(effort.pipelined[0]):
            for session in sessions:
                count = counts[session.name]
                rates[session.name].append(count / flood(session, 1 + TRY_CALLS + number * count, count))
        memory = {session.name: session.peak_kib() for session in sessions if session.name != BARE.name}
    rows = [Row("calls/s", medians(rates)), memory_row(memory)]
    return [Section("calls pipelined", rows), *_denials([one for one in variants if one.name == GUARD.name], effort, folder)]


def _denials(variants: Sequence[Variant], effort: Effort, folder: Path) -> list[Section]:
    """A loop that does not stop when it is denied."""
    sections = []
    for variant in variants:
        with variant.start(BENCH_SERVER, folder / "denials") as session:
            session.widen_pipes()
            session.handshake()
            session.write(echo_call(1, b"full"))
            session.read_answer(1)
            seconds = flood(session, 2, TRY_CALLS, is_denied=True)
            count = max(LEAST_CALLS, int(TRY_CALLS / seconds * effort.pipelined[1]))
            first_ids = range(2 + TRY_CALLS, 2 + TRY_CALLS + count * effort.pipelined[0], count)
            rates = [count / flood(session, first_id, count, is_denied=True) for first_id in first_ids]
            rows = [Row("denials/s", medians({variant.name: rates})), memory_row({variant.name: session.peak_kib()})]
            sections.append(Section("denials pipelined", rows))
    return sections


def flood(session: Session, first_id: int, count: int, *, is_denied: bool = False) -> float:
    """Write `count` calls as fast as they are taken, while reading the answers.

    Args:
        session: The command.
        first_id: The first call's id.
        count: How many calls.
        is_denied: Whether the calls are of a tool whose limit is used up.

    Returns:
        Seconds from the first write to the last answer.
    """
    ids = range(first_id, first_id + count)
    tool = b"full" if is_denied else b"echo"
    calls = [echo_call(request_id, tool) for request_id in ids]
    writes = [b"".join(calls[at : at + CALLS_A_WRITE]) for at in range(0, count, CALLS_A_WRITE)]
    answered = 0
    failures: list[Exception] = []

    def write() -> None:
        try:
            for data in writes:
                session.write(data)
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
    what = _DENIAL if is_denied else _RESULT
    found = [int(one) for one in what.findall(b"".join(chunks))]
    if sorted(found) != list(ids):
        wanted = "a denial" if is_denied else "a result"
        raise session.failure(f"answered {len(set(found) & set(ids))} of {count} calls with {wanted}")
    return seconds
