"""A process that uses a store: `python -m tests.stores.worker WHAT PATH`. The tests control it through pipes."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

from mcpguard.errors import StoreUnavailable
from mcpguard.locks import lock_file
from mcpguard.stores import clock
from mcpguard.stores.api import Options
from mcpguard.stores.sqlite.store import SqliteStore
from tests.build import Session, Time
from tests.callers import Caller

QUICK = 20
"""How many times quicker the workers' time passes, so that a test of seconds sees a minute of windows."""

MANY = '[[rule]]\ntool = "x"\nlimit = "40/1s"\n[[rule]]\nuser = "*"\nlimit = "30/1s"\n'
CAPPED = '[[rule]]\ntool = "x"\nconcurrent = 2\n'
SEATS = 3
SEATED = f'[[rule]]\ntool = "x"\nconcurrent = {SEATS}\n'
FOREVER = '[[rule]]\ntool = "x"\nlimit = "1000000/1d"\n'


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def session_name() -> str:
    return os.urandom(8).hex()


def make(path: Path) -> None:
    """Open the store when told to."""
    sys.stdin.readline()
    store = SqliteStore(path, Options(timeout_ms=20_000))
    say(store.args_key.hex())
    sys.stdin.readline()
    store.close()


def call_until_told(path: Path) -> None:
    """Call without pause, and print the id of each admitted call. Audit rows have the times at which calls were decided."""
    last = Time()

    def time() -> int:
        last.now_us = clock.boot_us() * QUICK
        return last.now_us

    session = Session(SqliteStore(path, Options(timeout_ms=20_000), clock=time, wall=last), MANY, session=session_name())
    while True:
        verdict = session.one("x")
        if verdict.forwards:
            say(verdict.audit_id)


def call_a_share(path: Path) -> None:
    """Make a fixed number of calls."""
    session = Session(SqliteStore(path, Options(timeout_ms=20_000)), FOREVER, session=session_name())
    sys.stdin.readline()
    for _ in range(100):
        session.one("x")
    say("done")
    session.store.close()


def call_when_told(path: Path) -> None:
    """Make a call for each line `call`, and end the oldest one for each other line. Print decisions."""
    caller = Caller(SqliteStore(path, Options(timeout_ms=20_000)), CAPPED, session=session_name())
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
    caller = Caller(SqliteStore(path, Options(timeout_ms=20_000)), SEATED, session=session_name())
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


def fill_the_disk(path: Path) -> None:
    """Decide while files may not grow beyond a number of bytes. Then lift that bound, and print what the store has."""
    import resource  # Windows has none

    session = Session(SqliteStore(path), FOREVER, session=session_name())
    admitted = session.call("x", 10)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16_000, hard))
    failures = 0
    while failures < 3:
        try:
            admitted += session.call("x", 3)
        except StoreUnavailable as error:
            failures += 1
            say(error.message)
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    admitted += session.call("x", 5)
    (held,) = session.store.counters()
    entries = list(session.store.entries())
    say(f"{len(admitted)} {held.used} {len(entries)}")
    say(" ".join(str(entry.record["seq"]) for entry in entries))
    session.store.close()


WORK: dict[str, Callable[[Path], None]] = {
    work.__name__: work for work in (make, call_until_told, call_a_share, call_when_told, sit, hold, fill_the_disk)
}

if __name__ == "__main__":
    WORK[sys.argv[1]](Path(sys.argv[2]))
