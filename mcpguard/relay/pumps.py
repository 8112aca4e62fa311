"""The two pumps between client and server, and the bookkeeper behind them.

Each pump is a blocking loop in a thread of its own: a byte that hops through an event loop costs several times the whole
decision. What a call can do without is left to the bookkeeper, some tenths of a second later: outcomes, storms of denials,
the store's upkeep.
"""

import contextlib
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, Protocol

from mcpguard.core import audit, denial, frames
from mcpguard.core.answers import AnswerLines
from mcpguard.core.audit import Outcome
from mcpguard.core.frames import Frame, LineSplitter, Refusal
from mcpguard.core.guard import Action, Forward, Guard, Reply
from mcpguard.core.identity import Identity
from mcpguard.core.journal import Journal
from mcpguard.core.policy import Policy
from mcpguard.core.verdict import DecisionRequest, Verdict
from mcpguard.errors import PolicyError, StoreUnavailable, Unauthenticated
from mcpguard.relay.child import Child
from mcpguard.relay.console import Console
from mcpguard.relay.output import ClientOutput
from mcpguard.relay.readiness import ClientEnd, ServerInput, await_bytes
from mcpguard.relay.server_stream import CHUNK_BYTES, ServerStream
from mcpguard.stores.api import CallStore
from mcpguard.stores.clock import monotonic_us, wall_us

EXIT_S: Final = 0.3
"""How long after a server has closed its input we may learn that it has exited."""

TICK_S: Final = 0.2
"""How long the bookkeeper lets work gather."""

_MAX_UNREAD_BYTES: Final = 32 * 1024
"""Above this, what the server wrote is read for answers at once, while it is in the cache; else the bookkeeper reads it."""

_AT_ONCE: Final = 256
_AT_ONCE_BYTES: Final = 256 * 1024
"""Decisions in one transaction: some milliseconds, so that other wrappers get their turn. Rows may hold calls' arguments."""

_OUTCOMES_AT_ONCE: Final = 100


class PolicySource(Protocol):
    """Where the policy in force comes from."""

    def poll(self) -> Policy | PolicyError | None:
        """What is to be taken up, if anything is new."""


class IdentitySource(Protocol):
    """Where an identity comes from that changes, as tokens do."""

    def poll(self, *, for_call: bool) -> Identity | Unauthenticated | None:
        """Who calls from now on, if that is new; for a call it may wait a moment."""


class Pumps:
    """One session's traffic.

    Args:
        child: The server.
        guard: Decides.
        store: Counts. Calls are denied if it raises `StoreUnavailable`.
        journal: The session's audit.
        policy: Where the guard's policy comes from.
        output: The client's side.
        console: Where lines for people go.
        ended: Called from a thread of ours with what has ended: `client` or `server`, whose stream that was, or `answers`.
        who: Where the guard's identity comes from; None if it stays.
        source: The descriptor that the client writes to.
        max_frame_bytes: The longest line that is accepted from the client.
    """

    def __init__(
        self,
        child: Child,
        guard: Guard,
        store: CallStore,
        journal: Journal,
        policy: PolicySource,
        output: ClientOutput,
        console: Console,
        ended: Callable[[str], None],
        *,
        who: IdentitySource | None = None,
        source: int = 0,
        max_frame_bytes: int = frames.MAX_FRAME_BYTES,
    ) -> None:
        self._child = child
        self._guard = guard
        self._store = store
        self._journal = journal
        self._policy = policy
        self._who = who
        self.output = output
        self._console = console
        self._ended = ended
        self._source = source
        self._splitter = LineSplitter(max_frame_bytes)
        self._client_has_ended = ClientEnd(source)
        self._input = ServerInput(child.stdin)
        self._closed = ""  # why the server gets no more requests
        self._stream = ServerStream(child.stdout)
        # Held while guard, journal or store are used; never while somebody waits for a pipe
        self._deciding = threading.Lock()
        self._unread: deque[tuple[bytes, int]] = deque()
        self._unread_bytes = 0
        self._answers = AnswerLines()
        self._outcomes: list[Outcome] = []
        self._work = threading.Event()
        self._hurry = threading.Event()
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._pump_up, name="mcpguard-up", daemon=True),
            threading.Thread(target=self._pump_down, name="mcpguard-down", daemon=True),
            threading.Thread(target=self._keep_books, name="mcpguard-books", daemon=True),
        ]

    def start(self) -> None:
        """Note the policy that is in force, and begin to move bytes."""
        self._decide([self._guard.policy_note()])
        self._wake_bookkeeper()
        for thread in self._threads:
            thread.start()

    def close_input(self, why: str) -> None:
        """End the server's input. No call is charged from now on, and every request answered with an error that says why."""
        self._closed = self._closed or why
        self._child.close_stdin()

    def client_left(self) -> None:
        """The client has left, or wants us to: what the server leaves unanswered stays so."""
        self._guard.client_left()

    def awaits_answers(self) -> bool:
        """Whether the server has requests that it has not answered."""
        with self._deciding:
            self._read_answers()
            return self._guard.awaits_answers

    def end_stream(self) -> None:
        """The server is gone: pass on what it can have written, and nothing that others write to its stream after it."""
        self._stream.end()

    @property
    def is_passing_on(self) -> bool:
        """Whether something of the server's is on its way to the client."""
        return self.output.is_writing or self._stream.has_more

    def answer_rest(self, how: str) -> None:
        """The server is gone: answer what it left open, unless the client has left. `ended` is told `answers` then.

        What client and server write from now on is nobody's any more.

        Args:
            how: What became of it, for the client.
        """
        self._stop.set()
        self._hurry_bookkeeper()
        threading.Thread(target=self._answer_rest, args=(how,), name="mcpguard-last-answers", daemon=True).start()

    def _answer_rest(self, how: str) -> None:
        self.output.finish(lambda: self._rest(how))
        self._ended("answers")

    def _rest(self, how: str) -> bytes:
        """Answers for what is still open, once. Only what has been passed on can have been answered."""
        with self._deciding:
            self._read_answers()
            now_us = monotonic_us()
            self._outcomes += self._guard.server_lines(self._answers.last(), now_us=now_us)
            self._look_after_client()
            replies, outcomes = self._guard.server_exited(how, now_us=now_us)
            self._outcomes += outcomes
        return b"".join(reply.data for reply in replies)

    def close_books(self, timeout_s: float) -> None:
        """Write the session's last rows. A store that is stuck is waited for no longer than the timeout."""
        books = threading.Thread(target=self._close_books, name="mcpguard-last-books", daemon=True)
        books.start()
        books.join(timeout_s)

    # client → server

    def _pump_up(self) -> None:
        try:
            while chunk := self._read():
                self._take(self._splitter.feed(chunk))
            self._take(self._splitter.finish())
        except OSError:
            pass  # the client's end is broken: that is an end, too
        finally:
            self.client_left()
            self._ended("client")  # first: the server's exit that follows is then no surprise
            self.close_input("the client has closed its side")

    def _look_after_client(self) -> None:
        """Learn that the client has left though what it wrote before is not read yet. The caller holds `_deciding`."""
        if self._client_has_ended():
            self._guard.client_left()

    def _read(self) -> bytes:
        while True:
            try:
                return os.read(self._source, CHUNK_BYTES)
            except BlockingIOError:
                await_bytes(self._source)

    def _take(self, lines: Sequence[bytes | Refusal]) -> None:
        if not lines:
            return
        try:
            forwards = self._judge(lines)
        except Exception as error:  # a pump that dies in silence would hang the client
            self._internal_error(error)
            forwards = b""
            self._reply(_unjudged(lines))
        left = self._send(forwards) if forwards else b""
        if left and not self._stop.wait(EXIT_S):  # else the server has exited: `answer_rest` answers all that it left open
            self._undelivered(left)
        self._store.keep_pace(self._hurry_bookkeeper)
        self.output.await_room(self._client_has_ended)

    def _reply(self, replies: Iterable[bytes]) -> None:
        """Answer the client. Where `_deciding` is held, nothing that was decided stays unanswered at the end."""
        if data := b"".join(replies):
            self.output.reply(data)

    def _judge(self, lines: Sequence[bytes | Refusal]) -> bytes:
        """Answer the client, and return what goes on to the server."""
        forwards: list[bytes] = []
        replies: list[bytes] = []
        messages = frames.read(lines)
        calls = [one for one in messages if isinstance(one, Frame) and one.is_call]
        found = self._who.poll(for_call=bool(calls)) if self._who else None
        with self._deciding:
            if self._stop.is_set():
                return b""
            if self._closed:
                self._look_after_client()
                self._guard.server_gone(self._closed)
            if found is not None:
                self._guard.identify(found)
            if any(call.is_retry for call in calls):
                self._read_answers()
            noted = self._noted(calls)
            now_us = monotonic_us()
            actions = self._new_policy() + self._guard.client_messages(messages, now_us=now_us, noted=noted)
            requests = [action for action in actions if isinstance(action, DecisionRequest)]
            verdicts = iter(self._decide(requests) if requests else ())
            for action in actions:
                done = (
                    self._guard.charged(action, next(verdicts), now_us=now_us)
                    if isinstance(action, DecisionRequest)
                    else action
                )
                if isinstance(done, Forward):
                    forwards.append(done.data)
                elif isinstance(done, Reply):
                    replies.append(done.data)
            self._reply(replies)
        self._wake_bookkeeper()  # for what was decided, and for calls that were cancelled
        return b"".join(forwards)

    def _noted(self, calls: Sequence[Frame]) -> dict[str, str]:
        """The agents that hooks noted for calls, by the calls' ids."""
        ids = self._guard.wanted_notes(calls)
        with contextlib.suppress(StoreUnavailable):
            if ids:
                return self._store.noted_agents(self._guard.namespace, ids)
        return {}

    def _new_policy(self) -> list[Action]:
        found = self._policy.poll()
        if found is None:
            return []
        self._guard.take_up(found)
        reason, tell = "taken up", self._console.line
        if isinstance(found, PolicyError):
            reason, tell = f"not taken up: {found.message}", self._console.error
        tell(f"policy {reason}")
        return [self._guard.policy_note(reason=reason)]

    def _decide(self, requests: Sequence[DecisionRequest]) -> list[Verdict]:
        verdicts: list[Verdict] = []
        for some in [requests] if len(requests) == 1 else _portions(requests):
            try:
                verdicts += self._store.decide(some, self._journal)
            except StoreUnavailable as error:
                self._console.error(f"store unavailable: {error.message}", kind="store unavailable")
                for request in some:
                    request.detail = {**request.detail, "reason": "store_unavailable"}
                    request.why = f"the store of counters is unavailable ({error.message})."
                verdicts += [Verdict("unavailable") for _ in some]
        for request, verdict in zip(requests, verdicts, strict=True):
            if verdict.has_own_row and not verdict.forwards and verdict.decision != "policy":
                self._tell(audit.row(request, verdict, wall_us()))
        return verdicts

    def _wake_bookkeeper(self) -> None:
        if not self._work.is_set():
            self._work.set()

    def _hurry_bookkeeper(self) -> None:
        self._work.set()
        self._hurry.set()

    def _tell(self, row: audit.Row) -> None:
        """Say what was denied or refused. Whoever makes up names for tools, or odd frames, must not fill a disk with that."""
        record = audit.record(row)
        self._console.line(audit.line(record), kind=f"{row.decision} {record.get('axis', '')}")

    def _internal_error(self, error: Exception) -> None:
        self._console.error(f"internal error, please report it: {error!r}", kind="internal error")

    def _send(self, data: bytes) -> bytes:
        """Write frames to the server; returns those that it did not take whole, because it has closed its input."""
        written = 0
        while written < len(data):
            try:
                written += os.write(self._child.stdin, data[written:] if written else data)
            except BlockingIOError:
                self._input.wait(self._source, self._stream.read_ahead)
            except OSError:
                self.close_input("the server has closed its input")
                return data[data.rfind(b"\n", 0, written) + 1 :]
        return b""

    def _undelivered(self, frames_left: bytes) -> None:
        """Answer the requests among frames that the server did not take."""
        with self._deciding:
            self._look_after_client()
            replies = self._guard.undelivered(frames_left.split(b"\n"), now_us=monotonic_us())
            self._reply(reply.data for reply in replies)

    # server → client

    def _pump_down(self) -> None:
        try:
            while chunk := self._stream.read():
                self.output.relay(chunk, self._observe)
                self._keep_up()
        except OSError:
            pass
        finally:
            self._ended("server")

    def _observe(self, chunk: bytes) -> None:
        """Keep what may hold answers. The client is shown it later: it may answer with a retry at once."""
        if not (self._unread or self._guard.awaits_answers) and self._answers.is_between_frames and chunk[-1:] == b"\n":
            return  # whole frames, and no request that one of them could answer
        self._unread.append((chunk, monotonic_us()))
        self._unread_bytes += len(chunk)
        self._wake_bookkeeper()

    def _keep_up(self) -> None:
        if self._unread_bytes > _MAX_UNREAD_BYTES:
            with self._deciding:
                self._read_answers()

    def _read_answers(self) -> None:
        """Read outcomes off what has passed. The caller holds `_deciding`."""
        while self._unread:
            chunk, now_us = self._unread.popleft()
            self._unread_bytes -= len(chunk)
            self._outcomes += self._guard.server_lines(self._answers.feed(chunk), now_us=now_us)

    # the bookkeeper

    def _keep_books(self) -> None:
        while not self._stop.is_set():
            self._work.wait()
            self._hurry.wait(TICK_S)
            self._hurry.clear()
            self._work.clear()
            try:
                self._store.tend()  # first: it makes room for what is written next
                self._write_books()
            except StoreUnavailable:
                self._outcomes.clear()  # the calls are counted; how they ended is lost with the store
            except Exception as error:  # the books go on: storms, upkeep and recovery depend on this thread
                self._internal_error(error)
            if self._journal.is_waiting or self._store.needs_tending:
                self._work.set()

    def _close_books(self) -> None:
        self._rest("the client does not read")  # nothing is left, unless it could not be answered
        with contextlib.suppress(StoreUnavailable):
            self._write_books(all_of_them=True)

    def _write_books(self, *, all_of_them: bool = False) -> None:
        while True:
            with self._deciding:
                self._read_answers()
                self._outcomes += self._guard.server_lines((), now_us=monotonic_us())  # a server may never say anything again
                outcomes, self._outcomes = self._outcomes[:_OUTCOMES_AT_ONCE], self._outcomes[_OUTCOMES_AT_ONCE:]
                rows = self._journal.flush(wall_us(), all_of_them=all_of_them)
                if outcomes:
                    self._store.record(outcomes)
                if rows:
                    self._store.append(rows)
            for row in rows:
                self._tell(row)
            if not outcomes:
                return


def _unjudged(lines: Sequence[bytes | Refusal]) -> list[bytes]:
    """Answers for what could not be judged, so that nobody waits for it."""
    why = "mcpguard failed to judge this request; it was not forwarded"
    replies: list[bytes] = []
    for line in lines:
        with contextlib.suppress(Exception):  # what failed may be the parser itself
            messages = frames.parse(line) if isinstance(line, bytes) else ()
            requests = [one.id for one in messages if isinstance(one, Frame) and one.id is not None]
            replies += [denial.error(one, denial.UNAVAILABLE, why, {"reason": "internal_error"}) for one in requests]
    return replies


def _portions(requests: Sequence[DecisionRequest]) -> Iterator[Sequence[DecisionRequest]]:
    """Charges, as many at a time as are decided in one transaction."""
    some: list[DecisionRequest] = []
    size = 0
    for request in requests:
        length = len(request.frame.raw) if request.frame else 0
        if some and (len(some) == _AT_ONCE or size + length > _AT_ONCE_BYTES):
            yield some
            some, size = [], 0
        some.append(request)
        size += length
    if some:
        yield some
