"""Tells a wrapper's events. A process of its own sends each message, so that nothing of that is loaded or can hang here."""

import contextlib
import json
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

from mcpguard.alerts import Way
from mcpguard.alerts.events import Event, Record, admit
from mcpguard.light_typing import TYPE_CHECKING, Final
from mcpguard.text.printing import plural

if TYPE_CHECKING:
    import subprocess

MOST_NOTED: Final = 1024
"""How many events wait. If there are more, the oldest are dropped. A storm of denials is an event a second."""

MOST_DUE: Final = 16
"""While so many messages wait, events wait: only what becomes a message counts as told."""


class Notifier:
    """Tells events. Only `note` may be called while a call waits.

    Args:
        ways: The configured ways.
        database: The account's database. What was told is in a file beside it.
        error: Gets a line about the first message that could not be sent.
    """

    def __init__(self, ways: Sequence[Way], database: str, error: Callable[[str], None] = lambda _: None) -> None:
        self._ways = ways
        self._path = os.path.join(os.path.dirname(database), "notified.json")
        self._error = error
        self._noted: deque[Event] = deque(maxlen=MOST_NOTED)
        self._due: deque[tuple[Way, dict[str, object]]] = deque()
        self._process: subprocess.Popen[bytes] | None = None  # which sends a message
        self._has_failed = False
        self._lock = threading.Lock()  # at the end two threads may tend

    def note(self, record: Record) -> None:
        """Note a row, or the begin or the end of an outage. From any thread."""
        self._noted.append(Event(record, time.time_ns() // 1000))

    def tend(self) -> None:
        """Begin to send the next message that is due, unless one is being sent."""
        with self._lock:
            try:
                self._tend()
            except Exception as error:  # such as of a full disk; the bookkeeper's loop goes on
                self._fail(str(error))

    def _tend(self) -> None:
        while self._noted and len(self._due) < MOST_DUE:
            event = self._noted.popleft()
            ways = [way for way in self._ways if event.kind in way.on]
            if ways and (more := admit(event, self._path, self._ways)) is not None:
                self._due += [(way, event.message(more)) for way in ways]
        if self._process and self._process.poll() is not None:
            self._fail(result(self._process))
            self._process = None
        if self._due and not self._process:
            self._process = start(*self._due.popleft())

    def _fail(self, why: str) -> None:
        if why and not self._has_failed:
            self._has_failed = True
            self._error(f"a message was not sent: {why} (try it: mcpguard doctor --notify)")

    def close(self, timeout_s: float = 0.0) -> None:
        """Send what is still due. What takes longer than this ends without this process."""
        until_s = time.monotonic() + timeout_s
        self.tend()
        while self._process and time.monotonic() < until_s:
            time.sleep(0.01)
            self.tend()
        untold, self._noted = self._noted, deque()
        while self._due:
            self._process = None
            self.tend()
        lost = sum(any(event.kind in way.on for way in self._ways) for event in untold)
        if lost:
            self._fail(f"{plural(lost, 'event')} came when {MOST_DUE} messages were due, and then the session ended")


def start(way: Way, message: dict[str, object]) -> "subprocess.Popen[bytes]":
    """Start a process that sends a message; see `deliver`.

    Raises:
        OSError: It cannot be started.
    """
    import subprocess

    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "mcpguard.alerts.deliver"],  # -P: import nothing from the working folder
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # signals to mcpguard's group or the server's must not reach it
        creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
    )
    if process.stdin:
        with contextlib.suppress(OSError), process.stdin:
            process.stdin.write(json.dumps([way, message]).encode())
    process.stdin = None  # else `communicate` would flush it
    return process


def result(process: "subprocess.Popen[bytes]") -> str:
    """Why a process could not send its message; empty if it has sent it. Waits for its end."""
    told, _ = process.communicate()
    return told.decode(errors="replace") or (f"exit status {process.returncode}" if process.returncode else "")
