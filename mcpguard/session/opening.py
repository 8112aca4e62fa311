"""The opening of a session: what passes before the session is loaded."""

from collections.abc import Sequence
from typing import Final

from mcpguard.wire.frames import Frame, Refusal
from mcpguard.wire.ids import id_key

MAX_BYTES: Final = 64 * 1024
"""How many bytes pass. A client writes less than 1 KiB before it waits for the server's first answer."""


class Opening:
    """Lets the client's first messages pass, and keeps them for the session.

    Loading the session takes as long as a small server takes to boot. So messages pass before that if the session would only
    have to remember them. All others wait for the session: calls, refusals, and a request with the id of an earlier one, before
    which the session reads answers.

    Attributes:
        passed: The messages that have passed, with their times. The session judges them first.
    """

    def __init__(self) -> None:
        self.passed: list[tuple[Sequence[Frame | Refusal], int]] = []
        self._ids: set[str] = set()
        self._bytes = 0

    def forward(self, messages: Sequence[Frame | Refusal], now_us: int) -> bytes | None:
        """The frames for the server; None if the messages have to wait for the session, and all later ones with them.

        Args:
            messages: As `frames.read` returns them.
            now_us: A monotone clock's reading.
        """
        to_server = []
        for message in messages:
            if isinstance(message, Refusal) or message.is_call:
                return None
            if message.id is not None:
                key = id_key(message.id)
                if key in self._ids:
                    return None
                self._ids.add(key)
            to_server.append(message.raw + b"\n")
        data = b"".join(to_server)
        self._bytes += len(data)
        if self._bytes > MAX_BYTES:
            return None
        self.passed.append((messages, now_us))
        return data
