"""Hands events to the core, and carries out its commands."""

import contextlib
import threading
from collections import deque
from collections.abc import Callable
from typing import Final

from mcpguard.core.session import events
from mcpguard.core.session.commands import Decide, Log, LookUp, Record, ToClient, ToServer
from mcpguard.core.session.machine import Session
from mcpguard.errors import StoreUnavailable
from mcpguard.relay.console import Console
from mcpguard.relay.unread import Unread
from mcpguard.stores.api import CallStore
from mcpguard.stores.clock import monotonic_us

BUSY_S: Final = 0.1
"""How long a shutdown waits for the session."""


class Dispatcher:
    """Lets several threads use one session: one event at a time, with all that it leads to.

    Its lock is held while the session or the store is used, except for the store's upkeep. It is never held while a thread
    waits for a pipe.

    Args:
        session: The core's state machine.
        store: Decides and writes for it.
        unread: What the server has written and the session has not read.
        reply: Queues frames for the client; does not wait for it. It is called under the lock, so that everything that was
            decided before the server's end is answered before the end of the stream.
        console: Takes lines for stderr.
    """

    def __init__(
        self, session: Session, store: CallStore, unread: Unread, reply: Callable[[bytes], None], console: Console
    ) -> None:
        self._session = session
        self._store = store
        self._unread = unread
        self._reply = reply
        self._console = console
        self._lock = threading.Lock()
        self._posted: deque[events.Event] = deque()

    def post(self, event: events.Event) -> None:
        """Have an event dispatched before the next one. Waits for nothing, so that it can be used when a store hangs.

        Args:
            event: An event that leads to nothing for the server.
        """
        self._posted.append(event)

    def dispatch(self, event: events.Event) -> bytes:
        """Hand an event to the session and carry out what it commands.

        Returns:
            The frames for the server. The caller writes them, because a server may take its time.
        """
        with self._lock:
            while self._posted:
                self._carry_out(self._posted.popleft(), self._reply)
            return self._carry_out(event, self._reply)

    def last_answers(self, how: str) -> bytes:
        """The server is gone, and the client has received all that it wrote: answers for the requests in flight.

        Args:
            how: What became of the server, as a clause.
        """
        now_us = monotonic_us()
        answers: list[bytes] = []
        with self._lock:
            self._read_answers()
            self._session.handle(self._unread.last(now_us))
            while self._posted:
                self._carry_out(self._posted.popleft(), self._reply)
            self._carry_out(events.ServerExited(how, now_us), answers.append)
        return b"".join(answers)

    def read_answers(self) -> None:
        """Show the session what the server has written."""
        with self._lock:
            self._read_answers()

    def awaits_answers(self) -> bool:
        """Whether a request is in flight, by what the server has written so far.

        Also true if that cannot be found out within `BUSY_S`, because another thread uses the session or a store that hangs.
        """
        if not self._lock.acquire(timeout=BUSY_S):
            return True
        try:
            self._read_answers()
            return self._session.awaits_answers
        finally:
            self._lock.release()

    def _carry_out(self, event: events.Event, reply: Callable[[bytes], None]) -> bytes:
        to_server: list[bytes] = []
        to_client: list[bytes] = []
        next_event: events.Event | None = event
        while next_event is not None:
            commands, next_event = self._session.handle(next_event), None
            for command in commands:
                if isinstance(command, ToServer):
                    to_server.append(command.data)
                elif isinstance(command, ToClient):
                    to_client.append(command.data)
                elif isinstance(command, Log):
                    self._log(command)
                else:
                    next_event = self._answer(command)
        if to_client:
            reply(b"".join(to_client))
        return b"".join(to_server)

    def _answer(self, command: Decide | LookUp | Record) -> events.Event:
        """Carry out a command that is answered with an event."""
        if isinstance(command, Decide):
            try:
                return events.Decided(self._store.decide(command.requests, self._session.journal))
            except StoreUnavailable as error:
                return events.StoreFailed(error.message)
        return self._look_up(command) if isinstance(command, LookUp) else self._record(command)

    def _look_up(self, command: LookUp) -> events.LookedUp:
        if command.answers:
            self._read_answers()
        agents: dict[str, str] = {}
        if command.tool_use_ids:
            with contextlib.suppress(StoreUnavailable):
                agents = self._store.noted_agents(self._session.namespace, command.tool_use_ids)
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

    def _log(self, command: Log) -> None:
        write = self._console.error if command.is_error else self._console.line
        write(command.text, kind=command.kind)

    def _read_answers(self) -> None:
        for event in self._unread.take():
            self._session.handle(event)
