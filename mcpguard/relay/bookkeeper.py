"""The bookkeeper: records outcomes and summed-up denials, and does the store's upkeep, while no call waits."""

import threading
import time
from collections.abc import Callable

from mcpguard.errors import StoreUnavailable
from mcpguard.light_typing import Final, NamedTuple
from mcpguard.relay import threads
from mcpguard.relay.console import Console
from mcpguard.relay.dispatch import Dispatcher
from mcpguard.session.machine import MAX_OUTCOMES, Session
from mcpguard.stores.api import CallStore
from mcpguard.stores.clock import GIVE_WAY_S, PAUSE_S, QUIET_S, wall_us

HANDFUL_BYTES: Final = 1024
"""How much of the server's output is read at once, because a call may wait for that: about 8 small answers. A 32nd of what is
unread, if that is more."""


class Rhythm(NamedTuple):
    """When the bookkeeper works.

    Attributes:
        tick_s: How long work is left to accumulate.
        most_s: The same while there are calls all the time. If it were longer, they would soon wait for room in the log.
        quiet_s: How long there must be no call before work begins.
        catch_up_s: How often a wrapper without calls takes in what others have written.
    """

    tick_s: float = 0.2
    most_s: float = 0.25
    quiet_s: float = QUIET_S
    catch_up_s: float = 5.0


RHYTHM: Final = Rhythm()


class Bookkeeper:
    """The loop that does what no call waits for.

    Args:
        session: The core's state machine.
        store: The store whose upkeep it does.
        dispatcher: Takes events to the core.
        console: Takes lines for stderr.
        shut_down: Set to end the loop; then `hurry` must be called.
        rhythm: When it works.

    Attributes:
        notify: Called in each round of the loop: tells events.
    """

    def __init__(
        self,
        session: Session,
        store: CallStore,
        dispatcher: Dispatcher,
        console: Console,
        shut_down: threading.Event,
        rhythm: Rhythm,
    ) -> None:
        self._session = session
        self._store = store
        self._dispatcher = dispatcher
        self._console = console
        self._shut_down = shut_down
        self._rhythm = rhythm
        self._work = threading.Event()
        self._hurry = threading.Event()
        self._called_s = 0.0  # the last call or answer
        self.notify: Callable[[], None] = lambda: None

    def wake(self) -> None:
        """Note that a call was decided or answered, so that there may be something to record. From any thread."""
        self._called_s = time.monotonic()
        if not self._work.is_set():
            self._work.set()

    def judged(self) -> None:
        """Wake, then wait if the store needs time before it takes more calls. From the thread that reads from the client."""
        self.wake()
        self._store.keep_pace(self.hurry)

    def hurry(self) -> None:
        """Tend and record at once, because somebody waits for it. From any thread."""
        self._work.set()
        self._hurry.set()

    def run(self) -> None:
        """Until the shutdown, wait for work, then for more of it and for a moment without calls; then tend and record."""
        while not self._shut_down.is_set():
            self.notify()
            try:
                if not self._work.wait(self._rhythm.catch_up_s):
                    self._catch_up()
                    continue
                self._hurry.wait(self._rhythm.tick_s)
                self._give_way(self._rhythm.most_s - self._rhythm.tick_s)
                self._hurry.clear()
                self._work.clear()
                self._store.tend()  # first: it makes room for what is recorded next
                self._record()
            except StoreUnavailable:
                pass  # the store tries again when it is tended next
            except Exception as error:  # the loop goes on: audit log, upkeep and recovery depend on it
                self._console.internal_error(error)
            if self._session.journal.is_waiting or self._session.has_outcomes or self._store.needs_tending:
                self._work.set()

    def _catch_up(self) -> None:
        """While there are no calls, take in what other wrappers have written, so that the next call need not read much."""
        while self._store.catch_up() and not self._work.is_set():
            time.sleep(PAUSE_S)

    def finish(self, timeout_s: float) -> None:
        """Write the session's last rows, but do not wait longer than this for a store that hangs."""
        threads.start_last(self._finish, "last-rows", timeout_s)

    def _finish(self) -> None:
        # Only if the client does not read is a request still in flight. The answer is not sent, but the outcome is recorded.
        self._dispatcher.last_answers("the client does not read")
        self._dispatcher.record(wall_us(), everything=True)
        while self._session.has_outcomes:
            self._dispatcher.record(wall_us(), everything=True)

    def _record(self) -> None:
        """Read and record everything: in handfuls, so that calls are decided in between. If they go on and on, tend, too.

        The outcomes of several handfuls are recorded together, since the store takes a turn for each `record`.
        """
        until_s, tend_s = time.monotonic() + GIVE_WAY_S, time.monotonic() + self._rhythm.most_s
        while True:
            is_read = self._dispatcher.read_answers(max(HANDFUL_BYTES, self._dispatcher.unread.size_bytes // 32))
            is_long = time.monotonic() > tend_s
            if is_read or is_long or self._hurry.is_set() or len(self._session.in_flight.outcomes) >= MAX_OUTCOMES:
                self._dispatcher.record(wall_us())
            if self._hurry.is_set() or (is_read and not self._session.has_outcomes):
                return
            if is_long:
                self._store.tend()
                tend_s = time.monotonic() + self._rhythm.most_s
            time.sleep(PAUSE_S)
            self._give_way(until_s - time.monotonic())

    def _give_way(self, most_s: float) -> None:
        """Wait until there was no call for `quiet_s`; at most this long, and not if somebody waits for this loop."""
        until_s = time.monotonic() + most_s
        while (left_s := min(until_s, self._called_s + self._rhythm.quiet_s) - time.monotonic()) > 0:
            if self._hurry.wait(left_s):
                return
