"""How many bytes a second go from the server to the client, beside `cat` in the same place."""

import json
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from .effort import Effort
from .report import Row, Section, medians, memory_rows
from .session import Session
from .variants import BARE, BENCH_SERVER, CAT, Variant

PROBE_BYTES = 8 << 20
MOST_BYTES = 1 << 30
END = b"stream complete"


@dataclass(frozen=True, slots=True)
class Shape:
    """Frames of `frame_bytes` each, as many in one write of the server as fit `write_bytes`."""

    label: str
    frame_bytes: int
    write_bytes: int


SHAPES = (
    Shape("1 MiB frames", 1 << 20, 1 << 20),
    Shape("64 KiB frames", 1 << 16, 1 << 16),
    Shape("300 B, 64 KiB a write", 300, 1 << 16),
    Shape("300 B, one a write", 300, 300),
)


def measure(variants: Sequence[Variant], effort: Effort, folder: Path) -> list[Section]:
    rows: list[Row] = []
    with ExitStack() as stack:
        sessions = [stack.enter_context(variant.start(BENCH_SERVER, folder)) for variant in variants]
        for session in sessions:
            session.handshake()
        for shape in SHAPES:
            rates = _rates(sessions, shape, effort)
            rows.append(Row(shape.label, medians(rates), compared=True))
        memory = {session.name: session.memory() for session in sessions if session.name not in (BARE.name, CAT.name)}
    return [Section("server to client, MB/s", [*rows, *memory_rows(memory)])]


def _rates(sessions: Sequence[Session], shape: Shape, effort: Effort) -> dict[str, list[float]]:
    """Megabytes a second by variant. Each gets as much to carry as takes it `stream_seconds`."""
    rates: dict[str, list[float]] = {session.name: [] for session in sessions}
    sizes = {}
    for session in sessions:
        bytes_a_second = stream(session, shape, PROBE_BYTES)
        sizes[session.name] = min(MOST_BYTES, int(bytes_a_second * effort.stream_seconds))
    for _ in range(effort.stream_rounds):
        for session in sessions:
            rates[session.name].append(stream(session, shape, sizes[session.name]) / 1e6)
    return rates


def stream(session: Session, shape: Shape, total_bytes: int) -> float:
    """Have the server send about `total_bytes`; the bytes a second from the request to the last byte."""
    frames = max(1, total_bytes // shape.frame_bytes)
    arguments = {"frame_bytes": shape.frame_bytes, "frames": frames, "write_bytes": shape.write_bytes}
    params = {"name": "stream", "arguments": arguments}
    request = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}).encode() + b"\n"
    received = 0
    tail = b""
    before = time.perf_counter()
    session.write(request)
    while END not in tail or not tail.endswith(b"\n"):
        chunk = session.read()
        received += len(chunk)
        tail = (tail + chunk)[-200:] if len(chunk) < 200 else chunk[-200:]
    seconds = time.perf_counter() - before
    if received < frames * shape.frame_bytes:
        raise session.failure(f"lost bytes: {received} came of at least {frames * shape.frame_bytes}")
    return received / seconds
