"""The bookkeeper: records outcomes and summed-up denials, and looks after the store, off the calls' path."""

import threading
from typing import Final

from mcpguard.core.session import events
from mcpguard.core.session.machine import Session
from mcpguard.errors import StoreUnavailable
from mcpguard.relay.console import Console
from mcpguard.relay.dispatch import Dispatcher
from mcpguard.stores.api import CallStore
from mcpguard.stores.clock import wall_us

TICK_S: Final = 0.2
"""How long work is left to accumulate."""


class Bookkeeper:
    """The loop that does what no call waits for.

    Args:
        session: Tells whether there is something to record.
        store: The store that it looks after.
        dispatcher: Takes events to the core.
        console: Takes lines for stderr.
        shut_down: Set when the loop has to end.
    """

    def __init__(
        self, session: Session, store: CallStore, dispatcher: Dispatcher, console: Console, shut_down: threading.Event
    ) -> None:
        self._session = session
        self._store = store
        self._dispatcher = dispatcher
        self._console = console
        self._shut_down = shut_down
        self._work = threading.Event()
        self._hurry = threading.Event()

    def wake(self) -> None:
        """There may be something to record. From any thread."""
        if not self._work.is_set():
            self._work.set()

    def hurry(self) -> None:
        """Tend and record at once, because somebody waits for it. From any thread."""
        self._work.set()
        self._hurry.set()

    def run(self) -> None:
        """Tend and record until the shutdown, every `TICK_S` or when told to hurry, if there is something to do.

        After the shutdown `hurry` has to be called, too.
        """
        while not self._shut_down.is_set():
            self._work.wait()
            self._hurry.wait(TICK_S)
            self._hurry.clear()
            self._work.clear()
            try:
                self._store.tend()  # first: it makes room for what is recorded next
                self._record()
            except StoreUnavailable:
                pass  # the store tries again when it is tended next
            except Exception as error:  # the loop goes on: audit, upkeep and recovery depend on it
                self._console.internal_error(error)
            if self._session.journal.is_waiting or self._store.needs_tending:
                self._work.set()

    def finish(self, timeout_s: float) -> None:
        """Write the session's last rows, but do not wait longer than this for a store that hangs."""
        last = threading.Thread(target=self._finish, name="mcpguard-last-rows", daemon=True)
        last.start()
        last.join(timeout_s)

    def _finish(self) -> None:
        # No request is in flight any more, unless the client does not read, so that nobody could answer it
        self._dispatcher.last_answers("the client does not read")
        self._record(everything=True)

    def _record(self, *, everything: bool = False) -> None:
        while True:  # a portion at a time: calls are decided in between
            self._dispatcher.read_answers()
            self._dispatcher.dispatch(events.RecordingDue(wall_us(), everything=everything))
            if not self._session.has_outcomes:
                return
