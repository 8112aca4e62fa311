"""The traffic of one session: the loops between client and server, and how they end."""

import threading
from collections.abc import Callable

from mcpguard.light_typing import TYPE_CHECKING, Literal
from mcpguard.relay import threads
from mcpguard.relay.console import Console
from mcpguard.relay.dispatch import Dispatcher
from mcpguard.relay.downstream import Downstream, ServerStream
from mcpguard.relay.output import ClientOutput
from mcpguard.relay.process import ServerProcess
from mcpguard.relay.readiness import ClientInput
from mcpguard.relay.upstream import LOOP_TIMEOUTS, LoopTimeouts, Upstream
from mcpguard.wire import frames

if TYPE_CHECKING:  # the first messages pass before these are loaded
    from mcpguard.alerts.notifier import Notifier
    from mcpguard.identity.token import TokenSource
    from mcpguard.policy.file import PolicyFile
    from mcpguard.relay.bookkeeper import Bookkeeper
    from mcpguard.session.machine import Session
    from mcpguard.stores.api import CallStore

Ended = Literal["input", "client", "server", "answers"]
"""What has ended: what the client writes, the client, the server's stream, or the last answers to the client."""


class Traffic:
    """Starts the loops, each in a thread of its own, and ends them.

    The loops block: a byte that passes through an event loop costs several times as much as the whole decision.

    Args:
        server: The server's process.
        output: The client's side.
        console: Takes lines for stderr.
        ended: Called with what has ended, from a thread of the traffic.
        source: The descriptor that the client writes to.
        timeouts: How long the loops, and the end of a session, wait for others.
        max_frame_bytes: The longest line that is accepted from the client.

    Attributes:
        output: The client's side.
        stream: The server's output.
        client_input: What the client writes.
        dispatcher: Has the session.
        upstream: The loop from the client to the server.
        downstream: The loop from the server to the client.
        bookkeeper: The loop for all that no call waits for, once there is a session.
    """

    def __init__(
        self,
        server: ServerProcess,
        output: ClientOutput,
        console: Console,
        ended: Callable[[Ended], None],
        *,
        source: int = 0,
        timeouts: LoopTimeouts = LOOP_TIMEOUTS,
        max_frame_bytes: int = frames.MAX_FRAME_BYTES,
    ) -> None:
        self.output = output
        self._console = console
        self._ended = ended
        self._shut_down = threading.Event()
        self.stream = ServerStream(server.stdout)
        self.client_input = ClientInput(source)
        self.dispatcher = Dispatcher(output.reply, console, freed=self.client_input.wake)
        self.bookkeeper: Bookkeeper
        self.downstream = Downstream(self.stream, output, self.dispatcher)
        self.upstream = Upstream(
            server,
            self.dispatcher,
            output,
            console,
            read_ahead=self.stream.read_ahead,
            shut_down=self._shut_down,
            client_input=self.client_input,
            timeouts=timeouts,
            max_frame_bytes=max_frame_bytes,
        )

    def start(self) -> None:
        """Begin to move bytes. The first call, and all that the client writes after it, waits for `guard`.

        Raises:
            McpguardError: The system has no thread left.
        """
        threads.start(lambda: self.upstream.run(lambda: self._ended("input")), "upstream")
        threads.start(lambda: self.downstream.run(lambda: self._ended("server")), "downstream")

    def guard(
        self,
        session: "Session",
        store: "CallStore",
        policy_file: "PolicyFile",
        token: "TokenSource | None" = None,
        notifier: "Notifier | None" = None,
    ) -> None:
        """Begin to judge calls.

        Args:
            session: The core's state machine, which has been told of the policy and the identity.
            store: Decides calls and writes audit rows.
            policy_file: The source of later policies.
            token: The source of later identities; None if the identity does not change.
            notifier: Tells events; None if none are told.

        Raises:
            McpguardError: The system has no thread left.
        """
        from mcpguard.relay.bookkeeper import RHYTHM, Bookkeeper

        bookkeeper = self.bookkeeper = Bookkeeper(session, store, self.dispatcher, self._console, self._shut_down, RHYTHM)
        if notifier:
            self.dispatcher.note, bookkeeper.notify = notifier.note, notifier.tend
        self.downstream.kept = bookkeeper.wake
        self.upstream.guard(policy_file, token, bookkeeper.judged)
        self.dispatcher.begin(session, store)
        bookkeeper.hurry()  # it takes up the store as soon as that is open, so that the first call need not
        threads.start(bookkeeper.run, "bookkeeper")

    @property
    def is_passing_on(self) -> bool:
        """Whether bytes from the server are on their way to the client."""
        return self.output.is_writing or self.stream.has_more

    def answer_rest(self, how: str) -> None:
        """Answer every request in flight of a server that is gone, and end the output. Then `ended` is called with `answers`.

        Later bytes of the client and the server are discarded.

        Args:
            how: What became of the server, for the client.
        """
        self._shut_down.set()
        self.bookkeeper.hurry()

        def last_answers() -> bytes:  # when nothing more is passed on: what was passed on last may have answered requests
            self.upstream.notice_client_end()
            return self.dispatcher.last_answers(how)

        def answer() -> None:
            self.upstream.await_judged()  # the session discards what comes after the last answers
            self.output.finish(last_answers)
            self._ended("answers")

        threads.start_last(answer, "last-answers")
