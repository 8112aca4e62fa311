"""Hands messages and events to the session, asks the store what the session asks for, and carries out what comes of it."""

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence

from mcpguard.errors import StoreUnavailable
from mcpguard.light_typing import TYPE_CHECKING, Final
from mcpguard.relay.console import Console
from mcpguard.stores.clock import monotonic_us, wall_us
from mcpguard.wire.frames import Frame, Refusal, id_key

if TYPE_CHECKING:  # the first messages pass before these are loaded
    from mcpguard.session.machine import Session
    from mcpguard.session.verdict import DecisionRequest
    from mcpguard.stores.api import CallStore
    from mcpguard.wire.answers import AnswerLines, Line

SessionEvent = Callable[["Session"], None]
"""Tells the session what has happened, by one of its methods."""

BUSY_S: Final = 0.1
"""How long a shutdown waits for the session."""

MAX_EARLY_BYTES: Final = 64 * 1024
"""How many bytes pass before `begin`. A client writes less than 1 KiB before it waits for the server's first answer."""


class AnswersQueue:
    """What the server has written and the client has received, until outcomes are read off it.

    One thread adds chunks of the server's stream, and one thread at a time takes them.
    """

    def __init__(self) -> None:
        self._added_bytes = 0  # written only by the thread that adds
        self._taken_bytes = 0  # written only by the thread that takes
        self._chunks: deque[tuple[bytes, int]] = deque()
        self._lines: AnswerLines | None = None  # None until something is taken

    @property
    def size_bytes(self) -> int:
        """How many bytes are kept."""
        return self._added_bytes - self._taken_bytes

    def add(self, chunk: bytes, *, awaits_answers: bool) -> bool:
        """Keep a chunk if it may contain answers; returns whether it was kept.

        Args:
            chunk: What the server wrote.
            awaits_answers: Whether a request is in flight. If none is, chunks of whole frames are not kept.
        """
        if (
            not (self._chunks or awaits_answers)
            and (self._lines is None or self._lines.is_between_frames)
            and chunk[-1:] == b"\n"
        ):
            return False
        self._chunks.append((chunk, monotonic_us()))
        self._added_bytes += len(chunk)
        return True

    def take(self, most_bytes: int | None = None) -> "Iterator[tuple[Sequence[Line], int]]":
        """Remove chunks: all, or as many as it takes to have `most_bytes`. Returns the lines of each, and when it came."""
        until = None if most_bytes is None else self._taken_bytes + most_bytes
        while self._chunks and (until is None or self._taken_bytes < until):
            chunk, now_us = self._chunks[0]
            lines = self._answer_lines().feed(chunk)
            self._chunks.popleft()  # after `feed`: `add` relies on `_lines` having the bytes of every chunk that is gone
            self._taken_bytes += len(chunk)
            yield lines, now_us

    def last(self) -> "Sequence[Line]":
        """The unterminated answer that the stream ended with, if any."""
        return self._answer_lines().last()

    def _answer_lines(self) -> "AnswerLines":
        if self._lines is None:
            from mcpguard.wire.answers import AnswerLines  # the first answer passes before it is loaded

            self._lines = AnswerLines()
        return self._lines


class Dispatcher:
    """Lets several threads use one session: one event at a time, with everything that it leads to.

    The lock is held while a thread uses the session or the store, except for the store's upkeep. No thread holds it while it
    waits for a pipe.

    Loading the session takes as long as a small server takes to boot. So before `begin` messages pass that the session would
    only have to remember. Until then call only `pass_early`, `post` and `read_answers`.

    Args:
        reply: Queues frames for the client, without waiting for it. It is called under the lock, so that the replies of earlier
            events precede the last answers.
        console: Takes lines for stderr.
        freed: Called when calls have ended that others may wait for. It is called under the lock.

    Attributes:
        session: The session; None before `begin`.
        unread: The server's output that the session has not read.
        is_guarding: Set when calls can be judged.
        note: Called with the row of each denial and each warning that has a line on stderr.
    """

    def __init__(
        self,
        reply: Callable[[bytes], None],
        console: Console,
        freed: Callable[[], None] = lambda: None,
    ) -> None:
        self.session: Session | None = None
        self._store: CallStore
        self.unread = AnswersQueue()
        self.is_guarding = threading.Event()
        self._early: list[tuple[Sequence[Frame | Refusal], int]] = []  # what has passed, and when
        self._early_ids: set[str] = set()
        self._early_bytes = 0
        self._reply = reply
        self._console = console
        self._freed = freed
        self._lock = threading.Lock()
        self._posted: deque[SessionEvent] = deque()
        self.note: Callable[[Mapping[str, object]], None] = lambda _: None

    def pass_early(self, messages: Sequence[Frame | Refusal], now_us: int) -> bytes | None:
        """The frames for the server, of messages that need no session; None if they have to wait until `is_guarding` is set.

        So do calls, refusals, and a request with the id of an earlier one, before which the session reads answers; and all
        later messages with them.
        """
        with self._lock:
            ids = [message.id for message in messages if isinstance(message, Frame) and message.id is not None]
            keys = self._early_ids | {*map(id_key, ids)}
            data = b"".join([message.raw + b"\n" for message in messages if isinstance(message, Frame) and not message.is_call])
            if (
                self._posted
                or self.session is not None
                or data.count(b"\n") < len(messages)
                or len(keys) < len(self._early_ids) + len(ids)
                or self._early_bytes + len(data) > MAX_EARLY_BYTES
            ):
                return None
            self._early.append((messages, now_us))
            self._early_ids = keys
            self._early_bytes += len(data)
            return data

    def begin(self, session: "Session", store: "CallStore") -> None:
        """Use a session from now on, and judge calls. It is told of what has passed, then of what was posted.

        Args:
            session: The state machine.
            store: Decides calls and writes audit rows.
        """
        with self._lock:
            self.session = session
            self._store = store
            session.read_answers = lambda: self._read_answers(session)
            session.requests.take_note = lambda key: self._take_note(session, key)
            for messages, now_us in self._early:
                session.judge(messages, now_us)  # there is no call among them, and the server has the frames
                session.output()
            self.is_guarding.set()

    def post(self, event: SessionEvent) -> None:
        """Queue an event that the session is told of before the next one. Does not wait, even if a store hangs."""
        self._posted.append(event)

    def client_left(self) -> None:
        """Post that the client has left, or wants mcpguard to end."""
        self.post(lambda session: session.client_left(monotonic_us()))

    def dispatch(self, event: SessionEvent) -> bytes:
        """Tell the session of an event, and carry out what comes of it.

        Returns:
            The frames for the server. The caller writes them, because a server may take its time.
        """
        with self._lock:
            session = self._told()
            event(session)
            return self._carry_out(session, ())

    def judge(self, messages: Sequence[Frame | Refusal], now_us: int, *, alone: bool = False) -> bytes:
        """As `dispatch`, for messages from the client, and for the held calls that are due; see `Session.judge`."""
        with self._lock:
            session = self._told() if self._posted or self.session is None else self.session
            return self._carry_out(session, session.judge(messages, now_us, alone=alone))

    def _told(self) -> "Session":
        """The session, which has been told of what was posted."""
        session = self.session
        assert session is not None  # noqa: S101 - see `begin`
        while self._posted:
            self._posted.popleft()(session)
        return session

    def _take_note(self, session: "Session", key: str) -> str:
        with contextlib.suppress(StoreUnavailable):
            return self._store.take_note(session.namespace, key)
        return ""

    def _carry_out(self, session: "Session", asked: "Sequence[DecisionRequest]") -> bytes:
        """Have the store decide what the session asks for, and carry out what comes of it; returns frames for the server."""
        store = self._store
        if session.unwritten:
            with contextlib.suppress(StoreUnavailable):
                store.append(session.rows(wall_us()))
        if session.in_flight.endings:  # of calls that the client cancels: those after them may have their places
            self._settle(session)
        while asked:
            try:
                verdicts = store.decide(asked, session.journal)
            except StoreUnavailable as error:
                asked = session.undecided(error.message)
            else:
                asked = session.decided(verdicts)
        to_server, to_client = session.output()
        if session.in_flight.endings:
            self._settle(session)
        if session.lines:
            self._write_lines(session)
        if to_client:
            self._reply(to_client)
        return to_server

    def _settle(self, session: "Session") -> None:
        """Tell the store which calls have ended, before the client can know it."""
        with contextlib.suppress(StoreUnavailable):
            self._store.settle(session.take_endings())
        if session.held.calls:
            self._freed()

    def _write_lines(self, session: "Session") -> None:
        for text, kind, is_error, record in session.take_lines():
            (self._console.error if is_error else self._console.line)(text, kind=kind)
            if record:
                self.note(record)

    def record(self, wall_us: int, *, everything: bool = False) -> None:
        """Record some outcomes, and rows that sum up denials.

        Args:
            wall_us: Wall-clock time.
            everything: Whether the session ends, so that every denial must be in a row now.
        """
        with self._lock:
            session = self._told()
            outcomes = session.take_outcomes()
            rows = session.last_rows(wall_us, everything=everything)
            try:
                if outcomes:
                    self._store.record(outcomes)
                if rows:
                    self._store.append(rows)
            except StoreUnavailable:
                session.in_flight.outcomes.clear()  # the calls are counted; memory must not grow while the store is away
            self._write_lines(session)

    def last_answers(self, how: str) -> bytes:
        """Note that the server is gone, after the client has received its output; returns answers for the requests in flight.

        Args:
            how: What became of the server, as a clause.
        """
        now_us = monotonic_us()
        with self._lock:
            session = self._told()
            self._read_answers(session)
            session.server_wrote(self.unread.last(), now_us)
            answers = session.server_exited(how, now_us)
            self._settle(session)
            return answers

    def read_answers(self, most_bytes: int | None = None) -> bool:
        """Once calls can be judged, let the session read what the server has written; returns whether it has read everything.

        Args:
            most_bytes: About how much to read; None for everything.
        """
        self.is_guarding.wait()
        with self._lock:
            self._read_answers(self._told(), most_bytes)
        return not self.unread.size_bytes

    def awaits_answers(self) -> bool:
        """Whether a request is in flight, by what the server has written so far.

        Also true if that cannot be found out within `BUSY_S`, because another thread uses the session or a store that hangs.
        """
        if self.session is None or not self._lock.acquire(timeout=BUSY_S):
            return True
        try:
            self._read_answers(self.session)
            return bool(self.session.in_flight.by_id)
        finally:
            self._lock.release()

    def _read_answers(self, session: "Session", most_bytes: int | None = None) -> None:
        for lines, now_us in self.unread.take(most_bytes):
            try:
                session.server_wrote(lines, now_us)
                if session.in_flight.endings:
                    self._settle(session)
            except Exception as error:  # an outcome is lost; the session must not end for that
                self._console.internal_error(error)
