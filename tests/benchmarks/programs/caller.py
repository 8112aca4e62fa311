"""One client of many: `caller.py SECONDS COMMAND...` starts the command and, once told to, calls until the time is over.

It says `ready` when the command has answered, waits for a line, makes one call after another, and says how many a second.
"""

import sys
import time
from pathlib import Path

from tests.benchmarks.session import Session, ping_pong

AT_ONCE = 20


def main(seconds: float, command: list[str]) -> None:
    with Session("caller", command, cwd=Path.cwd(), env=None) as session:
        session.handshake()
        ping_pong(session, 1, AT_ONCE)
        print("ready", flush=True)
        sys.stdin.readline()
        calls = 0
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            ping_pong(session, calls + AT_ONCE + 1, AT_ONCE)
            calls += AT_ONCE
        print(calls / seconds, flush=True)


if __name__ == "__main__":
    main(float(sys.argv[1]), sys.argv[2:])
