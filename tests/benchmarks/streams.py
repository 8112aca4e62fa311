"""How many bytes a second go from the server to the client, beside `cat` in the same place."""

import json
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from .effort import Effort
from .report import Row, Section, medians
from .session import Session
from .variants import BENCH_SERVER, Variant

PROBE_BYTES = 8 << 20
MOST_BYTES = 1 << 30
END = b"stream complete"


SHAPES = {"1 MiB": 1 << 20, "64 KiB": 1 << 16}
"""The bytes of a frame, which is one write of the server."""


def measure(variants: Sequence[Variant], effort: Effort, folder: Path) -> list[Section]:
    rows: list[Row] = []
    with ExitStack() as stack:
        sessions = [stack.enter_context(variant.start(BENCH_SERVER, folder)) for variant in variants]
        for session in sessions:
            session.handshake()
        for name, frame_bytes in SHAPES.items():
            rows.append(Row(f"{name} frames", medians(_rates(sessions, frame_bytes, effort))))
    return [Section("server to client, MB/s", rows)]


def _rates(sessions: Sequence[Session], frame_bytes: int, effort: Effort) -> dict[str, list[float]]:
    """Megabytes a second by variant. Each gets as much to carry as takes it the time of a round."""
    rates: dict[str, list[float]] = {session.name: [] for session in sessions}
    sizes = {}
    for session in sessions:
        bytes_a_second = stream(session, frame_bytes, PROBE_BYTES)
        sizes[session.name] = min(MOST_BYTES, int(bytes_a_second * effort.streams[1]))
    for _ in range(effort.streams[0]):
        for session in sessions:
            rates[session.name].append(stream(session, frame_bytes, sizes[session.name]) / 1e6)
    return rates


def stream(session: Session, frame_bytes: int, total_bytes: int) -> float:
    """Have the server send about `total_bytes`; the bytes a second from the request to the last byte."""
    frames = max(1, total_bytes // frame_bytes)
    arguments = {"frame_bytes": frame_bytes, "frames": frames}
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
    if received < frames * frame_bytes:
        raise session.failure(f"lost bytes: {received} came of at least {frames * frame_bytes}")
    return received / seconds
