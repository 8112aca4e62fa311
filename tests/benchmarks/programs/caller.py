"""One client of many: `caller.py SECONDS COMMAND...` starts the command and, once told to, calls until the time is over.

It says `ready` when the command has answered, waits for a line, makes one call after another, and says what it measured as
one line of JSON.
"""

import json
import sys
import time
from pathlib import Path

from tests.benchmarks.calls import ping_pong
from tests.benchmarks.report import percentile
from tests.benchmarks.session import Session

AT_ONCE = 20


def main(seconds: float, command: list[str]) -> None:
    with Session("caller", command, cwd=Path.cwd(), env=None) as session:
        session.handshake()
        ping_pong(session, 1, AT_ONCE)
        print("ready", flush=True)
        sys.stdin.readline()
        times_us: list[float] = []
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            times_us += ping_pong(session, len(times_us) + AT_ONCE + 1, AT_ONCE)
        figures = {"rate": len(times_us) / seconds, "p50": percentile(times_us, 50), "p99": percentile(times_us, 99)}
        print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    main(float(sys.argv[1]), sys.argv[2:])
