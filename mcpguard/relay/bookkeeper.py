"""The bookkeeper: records outcomes and summed-up denials, and does the store's upkeep, while no call waits."""

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
        session: The core's state machine.
        store: The store whose upkeep it does.
        dispatcher: Takes events to the core.
        console: Takes lines for stderr.
        shut_down: Set to end the loop; then `hurry` must be called.
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
        """Note that there may be something to record. From any thread."""
        if not self._work.is_set():
            self._work.set()

    def hurry(self) -> None:
        """Tend and record at once, because somebody waits for it. From any thread."""
        self._work.set()
        self._hurry.set()

    def run(self) -> None:
        """Until the shutdown, wait for work, then at most `TICK_S` for more of it or for `hurry`; then tend and record."""
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
        # Only if the client does not read is a request still in flight. The answer is not sent, but the outcome is recorded.
        self._dispatcher.last_answers("the client does not read")
        self._record(everything=True)

    def _record(self, *, everything: bool = False) -> None:
        while True:  # in portions, so that calls are decided in between
            self._dispatcher.read_answers()
            self._dispatcher.dispatch(events.RecordingDue(wall_us(), everything=everything))
            if not self._session.has_outcomes:
                return
