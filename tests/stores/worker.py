"""A process that uses a store: `python -m tests.stores.worker WHAT PATH`. The tests control it through pipes."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

from mcpguard.locks import lock_file
from mcpguard.stores.api import Options
from mcpguard.stores.sqlite.store import SqliteStore
from tests.callers import Caller

CAPPED = '[[rule]]\ntool = "x"\nconcurrent = 2\n'
SEATS = 3
SEATED = f'[[rule]]\ntool = "x"\nconcurrent = {SEATS}\n'


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def begin(path: Path, policy: str) -> Caller:
    """Begin a session of another name than any other."""
    return Caller(SqliteStore(path, Options(timeout_ms=20_000)), policy, session=os.urandom(8).hex())


def make(path: Path) -> None:
    """Open the store when told to."""
    sys.stdin.readline()
    store = SqliteStore(path, Options(timeout_ms=20_000))
    say(store.args_key.hex())
    sys.stdin.readline()
    store.close()


def call_when_told(path: Path) -> None:
    """Make a call for each line `call`, and end the oldest one for each other line. Print decisions."""
    caller = begin(path, CAPPED)
    for line in sys.stdin:
        if line == "call\n":
            say(caller.words("x")[0])
        else:
            caller.end()
            say("ended")


def sit(path: Path) -> None:
    """Call without pause. Each call in flight sits on one of as many seats as the cap has places. Print whether there was one.

    A process that is killed closes its files in the order in which it opened them: it leaves its seat before its place.
    """
    seats = [lock_file(path.with_name(f"seat {at}")) for at in range(SEATS)]
    caller = begin(path, SEATED)
    while True:
        if caller.words("x") == ["allowed"]:
            seat = next((one for one in seats if one.acquire(0)), None)
            say("no seat" if seat is None else "seated")
            if seat is not None:
                seat.release()
            caller.end()


def hold(path: Path) -> None:
    """Hold the lock on a file until told to release it."""
    lock = lock_file(path)
    say(str(lock.acquire(10)))
    sys.stdin.readline()
    lock.release()
    lock.close()
    say("released")


WORK: dict[str, Callable[[Path], None]] = {work.__name__: work for work in (make, call_when_told, sit, hold)}

if __name__ == "__main__":
    WORK[sys.argv[1]](Path(sys.argv[2]))
