"""Hands events to the core, and carries out its commands."""

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from mcpguard.errors import StoreUnavailable
from mcpguard.relay.console import Console
from mcpguard.relay.unread import Unread
from mcpguard.session import events
from mcpguard.session.commands import Decide, Log, LookUp, Record, Settle, ToClient, ToServer
from mcpguard.session.opening import Opening
from mcpguard.stores.clock import monotonic_us
from mcpguard.wire.frames import Frame, Refusal

if TYPE_CHECKING:  # the first messages pass before these are loaded
    from mcpguard.session.machine import Session
    from mcpguard.stores.api import CallStore

BUSY_S: Final = 0.1
"""How long a shutdown waits for the session."""


class Dispatcher:
    """Lets several threads use one session: one event at a time, with everything that it leads to.

    The lock is held while a thread uses the session or the store, except for the store's upkeep. No thread holds it while it
    waits for a pipe.

    Before `begin` there is no session: call only `open`, `post` and `read_answers`.

    Args:
        unread: The server's output that the session has not read.
        reply: Queues frames for the client, without waiting for it. It is called under the lock, so that the replies of earlier
            events precede the last answers.
        console: Takes lines for stderr.
        freed: Called when calls have ended that others may wait for. It is called under the lock.
    """

    def __init__(
        self,
        unread: Unread,
        reply: Callable[[bytes], None],
        console: Console,
        freed: Callable[[], None] = lambda: None,
    ) -> None:
        self._session: Session
        self._store: CallStore
        self._begun = threading.Event()
        self._opening = Opening()
        self._unread = unread
        self._reply = reply
        self._console = console
        self._freed = freed
        self._lock = threading.Lock()
        self._posted: deque[events.Event] = deque()

    def open(self, messages: Sequence[Frame | Refusal], now_us: int) -> bytes | None:
        """The frames for the server, of messages that need no session; None if they have to wait for `begin`."""
        with self._lock:
            return None if self._posted or self._begun.is_set() else self._opening.forward(messages, now_us)

    def begin(self, session: "Session", store: "CallStore") -> None:
        """Use a session from now on. It is told of what has passed.

        Args:
            session: The core's state machine.
            store: Decides calls and writes audit rows.
        """
        with self._lock:
            self._session = session
            self._store = store
            for event in self._opening.passed:
                self._handle(event, self._reply)  # the server has the frames that it returns
            self._begun.set()

    def post(self, event: events.Event) -> None:
        """Queue an event that is dispatched before the next one. Does not wait, even if a store hangs.

        Args:
            event: An event that leads to no `ToServer`.
        """
        self._posted.append(event)

    def dispatch(self, event: events.Event) -> bytes:
        """Hand an event to the session and carry out what it commands.

        Returns:
            The frames for the server. The caller writes them, because a server may take its time.
        """
        with self._lock:
            if self._posted:
                self._handle_posted()
            return self._handle(event, self._reply)

    def judge(self, messages: Sequence[Frame | Refusal], now_us: int) -> bytes:
        """As `dispatch` of `ClientWrote`, but a call that came alone takes a short cut."""
        with self._lock:
            if self._posted:
                self._handle_posted()
            request = self._session.lone_call(messages)
            if request is None:
                return self._handle(events.ClientWrote(messages, now_us), self._reply)
            try:
                verdicts = self._store.decide((request,), self._session.journal)
            except StoreUnavailable as error:
                decided: events.Event = events.StoreFailed(error.message)
            else:
                if verdicts[0].decision == "allowed":
                    return self._session.forward(request, verdicts[0], now_us)
                decided = events.Decided(verdicts)
            self._session.resume(messages, request, now_us)
            return self._handle(decided, self._reply)

    def last_answers(self, how: str) -> bytes:
        """Note that the server is gone, after the client has received its output; returns answers for the requests in flight.

        Args:
            how: What became of the server, as a clause.
        """
        now_us = monotonic_us()
        answers: list[bytes] = []
        with self._lock:
            self._read_answers()
            self._read(self._unread.last(now_us))
            self._handle_posted()
            self._handle(events.ServerExited(how, now_us), answers.append)
        return b"".join(answers)

    def read_answers(self, most_bytes: int | None = None, *, waits: bool = True) -> bool:
        """Let the session read what the server has written; returns whether it has read everything.

        Args:
            most_bytes: About how much to read; None for everything.
            waits: Whether to wait for `begin`, and while another thread uses the session. Else nothing is read then.
        """
        if waits:
            self._begun.wait()
        elif not self._begun.is_set():
            return False
        if self._lock.acquire(blocking=waits):
            try:
                self._read_answers(most_bytes)
            finally:
                self._lock.release()
        return not self._unread.held_bytes

    @property
    def unread_bytes(self) -> int:
        """How much the server has written that the session has not read."""
        return self._unread.held_bytes

    def awaits_answers(self) -> bool:
        """Whether a request is in flight, by what the server has written so far.

        Also true if that cannot be found out within `BUSY_S`, because another thread uses the session or a store that hangs.
        """
        if not self._lock.acquire(timeout=BUSY_S):
            return True
        try:
            self._read_answers()
            return bool(self._session.in_flight.by_id)
        finally:
            self._lock.release()

    def _handle_posted(self) -> None:
        while self._posted:
            self._handle(self._posted.popleft(), self._reply)

    def _handle(self, event: events.Event, reply: Callable[[bytes], None]) -> bytes:
        to_server: list[bytes] = []
        to_client: list[bytes] = []
        next_event: events.Event | None = event
        while next_event is not None:
            commands, next_event = self._session.handle(next_event), None
            for command in commands:
                if isinstance(command, ToServer):
                    to_server.append(command.data)
                elif isinstance(command, Decide):
                    next_event = self._decide(command)
                elif isinstance(command, ToClient):
                    to_client.append(command.data)
                elif isinstance(command, Log):
                    self._log(command)
                elif isinstance(command, LookUp):
                    next_event = self._look_up(command)
                elif isinstance(command, Settle):
                    self._settle(command)
                else:
                    next_event = self._record(command)
        if to_client:
            reply(b"".join(to_client))
        return b"".join(to_server)

    def _decide(self, command: Decide) -> events.Decided | events.StoreFailed:
        try:
            return events.Decided(self._store.decide(command.requests, self._session.journal))
        except StoreUnavailable as error:
            return events.StoreFailed(error.message)

    def _look_up(self, command: LookUp) -> events.LookedUp:
        if command.answers:
            self._read_answers()
        agents: dict[str, str] = {}
        if command.notes:
            with contextlib.suppress(StoreUnavailable):
                agents = self._store.take_notes(self._session.namespace, command.notes)
        return events.LookedUp(agents)

    def _record(self, command: Record) -> events.Recorded | events.RecordingFailed:
        try:
            if command.outcomes:
                self._store.record(command.outcomes)
            if command.rows:
                self._store.append(command.rows)
        except StoreUnavailable:
            return events.RecordingFailed()
        return events.Recorded()

    def _settle(self, command: Settle) -> None:
        with contextlib.suppress(StoreUnavailable):
            self._store.settle(command.endings)
        if self._session.held_calls_due_us is not None:
            self._freed()

    def _log(self, command: Log) -> None:
        write = self._console.error if command.is_error else self._console.line
        write(command.text, kind=command.kind)

    def _read_answers(self, most_bytes: int | None = None) -> None:
        for event in self._unread.take(most_bytes):
            self._read(event)

    def _read(self, event: events.ServerWrote) -> None:
        try:
            for command in self._session.handle(event):
                if isinstance(command, Settle):
                    self._settle(command)
        except Exception as error:  # an outcome is lost; the session must not end for that
            self._console.internal_error(error)
