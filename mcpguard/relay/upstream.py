"""From the client to the server: what the client writes is judged, then forwarded or answered."""

import os
import threading
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from mcpguard.core.identity import Identity
from mcpguard.core.jsonrpc import frames
from mcpguard.core.jsonrpc.frames import Frame, LineSplitter, Refusal
from mcpguard.core.policy.model import Policy
from mcpguard.core.session import events
from mcpguard.errors import PolicyError, Unauthenticated
from mcpguard.relay.console import Console
from mcpguard.relay.dispatch import Dispatcher
from mcpguard.relay.output import ClientOutput
from mcpguard.relay.process import ServerProcess
from mcpguard.relay.readiness import ClientEnd, ServerInput, await_bytes
from mcpguard.relay.server_stream import CHUNK_BYTES
from mcpguard.stores.clock import monotonic_us

EXIT_S: Final = 0.3
"""How long after a server has closed its input we wait for its exit, so that requests are answered with its status."""


class PolicySource(Protocol):
    """Where the policy in force comes from."""

    def poll(self) -> Policy | PolicyError | None:
        """The policy to take up; None if nothing has changed."""


class IdentitySource(Protocol):
    """Where an identity comes from that changes, as tokens do."""

    def poll(self, *, for_call: bool) -> Identity | Unauthenticated | None:
        """The caller from now on; None if it has not changed. With `for_call` it may wait a moment."""


class Upstream:
    """The loop from the client to the server.

    Args:
        server: The server's process.
        dispatcher: Takes events to the core.
        output: The client's side.
        console: Takes lines for stderr.
        read_ahead: Reads some of the server's output if nobody else does; returns whether there was any. Used while the
            server takes no input.
        judged: Called when messages have been judged, so that there may be something to record.
        keep_pace: Waits until the store has room for more calls.
        shut_down: Set when the server has exited and its last requests are being answered.
        policy: Where the policy comes from.
        who: Where the identity comes from; None if it does not change.
        source: The descriptor that the client writes to.
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
        judged: Callable[[], None],
        keep_pace: Callable[[], None],
        shut_down: threading.Event,
        policy: PolicySource,
        who: IdentitySource | None = None,
        source: int = 0,
        max_frame_bytes: int = frames.MAX_FRAME_BYTES,
    ) -> None:
        self._server = server
        self._dispatcher = dispatcher
        self._output = output
        self._console = console
        self._read_ahead = read_ahead
        self._judged = judged
        self._keep_pace = keep_pace
        self._shut_down = shut_down
        self._policy = policy
        self._who = who
        self._source = source
        self._splitter = LineSplitter(max_frame_bytes)
        self._client_has_ended = ClientEnd(source)
        self._input = ServerInput(server.stdin)
        self._is_input_closed = False

    def run(self, ended: Callable[[], None]) -> None:
        """Move bytes until the client has closed its side.

        Args:
            ended: Called then.
        """
        try:
            while chunk := self._read():
                self._take(self._splitter.feed(chunk))
            self._take(self._splitter.finish())
        except OSError:
            pass  # a broken stream has ended, too
        finally:
            self._dispatcher.post(events.ClientLeft())
            ended()  # before the server's input ends: its exit is then not a surprise
            self.close_input("the client has closed its side")

    def close_input(self, why: str) -> None:
        """End the server's input. From now on no call is charged, and requests are answered with an error that says why."""
        self._is_input_closed = True
        self._dispatcher.post(events.InputClosed(why))
        self._server.close_stdin()

    def notice_client_end(self) -> None:
        """Find out whether the client has left, though what it wrote before is not read yet."""
        if self._client_has_ended():
            self._dispatcher.post(events.ClientLeft())

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
            to_server = self._judge(lines)
        except Exception as error:  # the client would hang if this loop ended in silence
            self._console.internal_error(error)
            to_server = self._dispatcher.dispatch(events.Unjudged(lines, monotonic_us()))
        if to_server:
            self._send(to_server)
        self._await_room()

    def _judge(self, lines: Sequence[bytes | Refusal]) -> bytes:
        """Have lines judged; returns the frames for the server."""
        messages = frames.read(lines)
        if self._who:
            found = self._who.poll(for_call=any(isinstance(one, Frame) and one.is_call for one in messages))
            if found is not None:
                self._dispatcher.post(events.IdentityChanged(found))
        changed = self._policy.poll()
        if changed is not None:
            self._dispatcher.post(events.PolicyChanged(changed))
        if self._is_input_closed:
            self.notice_client_end()
        to_server = self._dispatcher.dispatch(events.ClientWrote(messages, monotonic_us()))
        self._judged()
        return to_server

    def _send(self, data: bytes) -> None:
        """Write frames to the server. Requests that it does not take are answered."""
        written = 0
        while written < len(data):
            try:
                written += os.write(self._server.stdin, data[written:] if written else data)
            except BlockingIOError:
                self._input.wait(self._source, self._read_ahead)
            except OSError:
                self.close_input("the server has closed its input")
                self._answer_undelivered(data[data.rfind(b"\n", 0, written) + 1 :])
                return

    def _answer_undelivered(self, data: bytes) -> None:
        if not self._shut_down.wait(EXIT_S):  # else the server has exited: everything in flight is answered with its status
            self.notice_client_end()
            self._dispatcher.dispatch(events.Undelivered(data, monotonic_us()))

    def _await_room(self) -> None:
        """Backpressure: read no more from the client while the store or the client has too much to process."""
        self._keep_pace()
        self._output.await_room(self._client_has_ended)
