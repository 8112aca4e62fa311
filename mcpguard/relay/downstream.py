"""The loop from the server to the client: bytes pass unchanged, and are kept until their outcomes are read."""

from collections.abc import Callable
from typing import Final

from mcpguard.relay.answers_queue import AnswersQueue
from mcpguard.relay.dispatch import Dispatcher
from mcpguard.relay.output import ClientOutput
from mcpguard.relay.server_stream import ServerStream

MUCH_UNREAD_BYTES: Final = 128 * 1024
"""If more is unread, this loop reads twice as much as it passes on, if no other thread uses the session. Usually the bookkeeper
reads the answers while there are no calls."""

MAX_UNREAD_BYTES: Final = 512 * 1024
"""If more is unread, this loop waits for the session, to bound the memory."""


class Downstream:
    """The loop from the server to the client.

    Args:
        stream: The server's output.
        output: The client's side.
        unread: Keeps chunks that may contain answers.
        dispatcher: Lets the session read them.

    Attributes:
        kept: Called when a chunk was kept, so that there may be something to record.
    """

    def __init__(
        self,
        stream: ServerStream,
        output: ClientOutput,
        unread: AnswersQueue,
        dispatcher: Dispatcher,
    ) -> None:
        self._stream = stream
        self._output = output
        self._unread = unread
        self._dispatcher = dispatcher
        self.kept: Callable[[], None] = lambda: None

    def run(self, ended: Callable[[], None]) -> None:
        """Move bytes until the stream ends.

        Args:
            ended: Called then.
        """
        try:
            while chunk := self._stream.read():
                self._output.relay(chunk, self._observe)
                if self._unread.held_bytes > MUCH_UNREAD_BYTES:
                    self._dispatcher.read_answers(2 * len(chunk), waits=self._unread.held_bytes > MAX_UNREAD_BYTES)
        except OSError:
            pass  # a broken stream counts as ended
        finally:
            ended()

    def _observe(self, chunk: bytes) -> None:
        """Keep a chunk before it is written to the client, because the client may retry as soon as it reads the chunk.

        If the store has to be told of the end of a call, it is told before the client can know of the end.
        """
        session = self._dispatcher.session
        if self._unread.add(chunk, awaits_answers=session is None or session.in_flight.awaits_answers):
            self.kept()
            if session is not None and session.in_flight.to_settle:
                self._dispatcher.read_answers()
