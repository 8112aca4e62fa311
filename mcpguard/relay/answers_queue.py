"""What the server has written and the client has received, until outcomes are read off it."""

from collections import deque
from collections.abc import Iterator, Sequence

from mcpguard.light_typing import TYPE_CHECKING
from mcpguard.stores.clock import monotonic_us

if TYPE_CHECKING:
    from mcpguard.wire.answers import AnswerLines, Line


class AnswersQueue:
    """Chunks of the server's stream, kept until they are taken. One thread adds, and one thread at a time takes."""

    def __init__(self) -> None:
        self._added_bytes = 0  # written only by the thread that adds
        self._taken_bytes = 0  # written only by the thread that takes
        self._chunks: deque[tuple[bytes, int]] = deque()
        self._lines: AnswerLines | None = None  # None until something is taken

    @property
    def held_bytes(self) -> int:
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
