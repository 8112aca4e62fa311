"""The loop from the client to the server: what the client writes is judged, then forwarded or answered."""

import threading
import time
from collections.abc import Callable, Sequence

from mcpguard.light_typing import TYPE_CHECKING, Final, NamedTuple
from mcpguard.relay.console import Console
from mcpguard.relay.dispatch import Dispatcher
from mcpguard.relay.output import ClientOutput
from mcpguard.relay.process import ServerProcess
from mcpguard.relay.readiness import ClientInput, await_server
from mcpguard.stores.clock import monotonic_us
from mcpguard.wire import frames
from mcpguard.wire.frames import Frame, LineSplitter, MessageReader, Refusal

if TYPE_CHECKING:  # the first messages pass before these are loaded
    from mcpguard.identity.token import TokenSource
    from mcpguard.policy.file import PolicyFile

LOOK_S: Final = 0.2
"""How often the policy and the identity are looked at while calls are held."""

WAIT_S: Final = 0.005
"""How often to look whether it is judged."""


class LoopTimeouts(NamedTuple):
    """How long this loop, and the end of a session, wait for others.

    Attributes:
        exit_s: For the exit of a server that has closed its input, so that requests are answered with its status.
        judged_s: After the server's exit, until what the client has written is judged.
        stuck_s: For a server that takes nothing, after the client has gone. Then the remaining bytes are discarded.
    """

    exit_s: float = 0.3
    judged_s: float = 0.5
    stuck_s: float = 2.0


LOOP_TIMEOUTS: Final = LoopTimeouts()


class Upstream:
    """The loop from the client to the server.

    Args:
        server: The server's process.
        dispatcher: Takes events to the core.
        output: The client's side.
        console: Takes lines for stderr.
        read_ahead: Reads some of the server's output if no other thread does; returns whether there was any. Called while the
            server takes no input.
        shut_down: Set when the server has exited and its last requests are being answered.
        client_input: What the client writes; woken when a held call may be due.
        timeouts: How long it waits for others.
        max_frame_bytes: The longest line that is accepted.
    """

    def __init__(
        self,
        server: ServerProcess,
        dispatcher: Dispatcher,
        output: ClientOutput,
        console: Console,
        *,
        read_ahead: Callable[[], bool],
        shut_down: threading.Event,
        client_input: ClientInput,
        timeouts: LoopTimeouts,
        max_frame_bytes: int = frames.MAX_FRAME_BYTES,
    ) -> None:
        self._server = server
        self._dispatcher = dispatcher
        self._output = output
        self._console = console
        self._read_ahead = read_ahead
        self._shut_down = shut_down
        self._judged: Callable[[], None] = lambda: None
        self._policy_file: PolicyFile
        self._token: TokenSource | None = None
        self._client_input = client_input
        self._timeouts = timeouts
        self._splitter = LineSplitter(max_frame_bytes)
        self._reader = MessageReader()
        self._later: list[bytes] = []  # the frames of held calls that were decided while the server took no input
        self._is_input_closed = False
        self._is_judging = False
        self._is_over = False

    def guard(self, policy_file: "PolicyFile", token: "TokenSource | None", judged: Callable[[], None]) -> None:
        """Set what calls are judged by. They wait until `Dispatcher.begin`, with all that the client writes after them.

        Args:
            policy_file: The source of the policy.
            token: The source of the identity; None if it does not change.
            judged: Called after messages were judged. It may wait if the store needs time before it takes more calls.
        """
        self._policy_file, self._token, self._judged = policy_file, token, judged

    def run(self, ended: Callable[[], None]) -> None:
        """Move bytes until the client has closed its side.

        Args:
            ended: Called then.
        """
        try:
            while (lines := self._next_lines()) is not None:
                if to_server := self._judge(lines):
                    self._send(to_server)
                self._judged()
                if self._output.queued_bytes:
                    self._output.await_room(self._client_is_gone)  # backpressure
                self._is_judging = False
        except OSError:
            pass  # a broken stream counts as ended, and so does one whose server or client no longer takes anything
        finally:
            self._is_over = True
            self._dispatcher.client_left()
            ended()  # before the server's input ends: the supervisor must not take the server's exit for the cause
            self.close_input("the client has closed its side")

    def close_input(self, why: str) -> None:
        """End the server's input. From now on no call is charged, and requests are answered with an error that says why."""
        self._is_input_closed = True
        self._dispatcher.post(lambda session: session.close_input(why))
        self._server.stdin.close()

    def await_judged(self) -> None:
        """Wait until all that the client has written is judged, at most for `judged_s`. From any thread."""
        until_s = time.monotonic() + self._timeouts.judged_s
        looks = 0  # in a row that found nothing: two, since the loop may have read something and not noted it yet
        while looks < 2 and not self._is_over and time.monotonic() < until_s:
            time.sleep(WAIT_S)
            looks = 0 if self._client_input.has_bytes() or self._is_judging else looks + 1

    def notice_client_end(self) -> None:
        """Note whether the client has left, even if bytes that it wrote before are not read yet."""
        if self._client_input.has_ended:
            self._dispatcher.client_left()

    def _next_lines(self) -> Sequence[bytes | Refusal] | None:
        """The client's next lines, once it has written some; none if held calls are due before that; None at the end."""
        while True:
            session = self._dispatcher.session
            if session is not None and session.held.calls:
                left_s = max(0.0, ((session.held.next_us or 0) - monotonic_us()) / 1_000_000)
                if not self._client_input.wait(min(left_s, LOOK_S)):
                    return ()
            chunk = self._client_input.read()
            self._is_judging = True
            lines = self._splitter.feed(chunk) if chunk else self._splitter.finish()
            if lines or not chunk:
                return lines or None
            self._is_judging = False

    def _judge(self, lines: Sequence[bytes | Refusal], *, alone: bool = False) -> bytes:
        """Judge lines from the client, by the newest identity and policy; returns the frames for the server.

        Args:
            lines: The lines. Held calls that are due are judged with them.
            alone: Whether no held calls are judged with the lines, and only the first that is due if there are none.
        """
        try:
            messages = self._reader.read(lines)
            if self._dispatcher.session is None:
                to_server = self._dispatcher.pass_early(messages, monotonic_us())
                if to_server is not None:
                    return to_server
                self._dispatcher.is_guarding.wait()
            if self._token:
                self._poll(self._token, messages)
            if (policy := self._policy_file.poll()) is not None:
                self._dispatcher.post(lambda session: session.change_policy(policy))
            if self._is_input_closed:
                self.notice_client_end()
            return self._dispatcher.judge(messages, monotonic_us(), alone=alone)
        except Exception as error:  # the client would hang if this loop ended in silence
            self._console.internal_error(error)
            return self._judge_one_by_one(lines, alone=alone)

    def _judge_one_by_one(self, lines: Sequence[bytes | Refusal], *, alone: bool) -> bytes:
        """After a bug, judge held calls and lines one by one, so that it keeps no others from being judged."""
        self._dispatcher.is_guarding.wait()
        held = len(self._dispatcher.session.held.calls) if self._dispatcher.session else 0
        alone = alone or len(lines) + held <= 1
        self._dispatcher.dispatch(lambda session: session.unjudged(lines if alone else None, monotonic_us()))
        parts: list[Sequence[bytes | Refusal]] = [] if alone else [*[()] * held, *([line] for line in lines)]
        return b"".join([self._judge(part, alone=True) for part in parts])

    def _poll(self, token: "TokenSource", messages: Sequence[Frame | Refusal]) -> None:
        """Put the newest identity in force. For a call, or for held calls, it may wait for keys."""
        is_for_call = not messages or any(isinstance(one, Frame) and one.is_call for one in messages)
        if (identity := token.poll(for_call=is_for_call)) is not None:
            self._dispatcher.post(lambda session: session.change_identity(identity))

    def _send(self, data: bytes) -> None:
        """Write frames to the server; answer the requests that it does not take.

        Raises:
            ConnectionAbortedError: The client is gone, and the server takes nothing.
        """
        written = 0
        while written < len(data):
            try:  # a pipe takes 64 KiB at a time: a slice of bytes would copy the rest each time
                written += self._server.stdin.write(memoryview(data)[written:] if written else data)
            except BlockingIOError:
                await_server(self._server.stdin, self._client_is_gone, self._work_meanwhile, self._timeouts.stuck_s)
                data += b"".join(self._later)
                self._later.clear()
            except OSError:
                self.close_input("the server has closed its input")
                self._answer_undelivered(data[data.rfind(b"\n", 0, written) + 1 :])  # from the frame that was cut off
                return

    def _client_is_gone(self) -> bool:
        return self._client_input.has_ended and not self._output.has_reader

    def _work_meanwhile(self) -> bool:
        """While the server takes no input, decide held calls that are due, and read ahead; returns whether it has read."""
        due_us = self._dispatcher.session.held.next_us if self._dispatcher.session else None
        if due_us is not None and due_us <= monotonic_us() and not self._client_input.has_ended:
            self._later.append(self._judge(()))
            self._judged()
        return self._read_ahead()

    def _answer_undelivered(self, data: bytes) -> None:
        self._dispatcher.is_guarding.wait()  # an exit is noticed only after that
        if self._shut_down.wait(self._timeouts.exit_s):
            return  # the server has exited, and all requests in flight are answered with its status
        self.notice_client_end()
        self._dispatcher.dispatch(lambda session: session.undelivered(data, monotonic_us()))
