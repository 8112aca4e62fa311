"""From the server to the client: bytes pass as they are, and are kept until outcomes are read off them."""

from collections.abc import Callable
from typing import Final

from mcpguard.core.session.machine import Session
from mcpguard.relay.dispatch import Dispatcher
from mcpguard.relay.output import ClientOutput
from mcpguard.relay.server_stream import ServerStream
from mcpguard.relay.unread import Unread

MAX_UNREAD_BYTES: Final = 32 * 1024
"""More than this is read for answers at once, while it is in the cache. Less is left to the bookkeeper."""


class Downstream:
    """The loop from the server to the client.

    Args:
        stream: The server's output.
        output: The client's side.
        session: Tells whether a request is in flight.
        unread: Keeps what may hold answers.
        dispatcher: Shows the session what is kept.
        kept: Called when something is kept, so that there may be something to record.
    """

    def __init__(
        self,
        stream: ServerStream,
        output: ClientOutput,
        session: Session,
        unread: Unread,
        dispatcher: Dispatcher,
        kept: Callable[[], None],
    ) -> None:
        self._stream = stream
        self._output = output
        self._session = session
        self._unread = unread
        self._dispatcher = dispatcher
        self._kept = kept

    def run(self, ended: Callable[[], None]) -> None:
        """Move bytes until the stream ends.

        Args:
            ended: Called then.
        """
        try:
            while chunk := self._stream.read():
                self._output.relay(chunk, self._observe)
                if self._unread.held_bytes > MAX_UNREAD_BYTES:
                    self._dispatcher.read_answers()
        except OSError:
            pass  # a broken stream has ended, too
        finally:
            ended()

    def _observe(self, chunk: bytes) -> None:
        """Keep a chunk. It is not written to the client yet, which may answer with a retry at once."""
        if self._unread.add(chunk, awaits_answers=self._session.awaits_answers):
            self._kept()
