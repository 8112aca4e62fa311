"""Outcomes, read off the server's frames after the frames have passed.

Nothing here can delay or change a frame. If an answer is not understood, its outcome is unknown.
"""

import json
import re
from typing import Final, NamedTuple

from mcpguard.core.jsonrpc.frames import id_text


class Answer(NamedTuple):
    """A server's response to a request.

    Attributes:
        id: The request's id as JSON text.
        outcome: `ok`, `tool_error`, `rpc_error`, or `unparsed` if it was too large to tell.
        asks: For a result of type `input_required`, what the retry has to carry; else None.
    """

    id: str
    outcome: str
    asks: "Asks | None" = None


class Asks(NamedTuple):
    """What a server asks for before it continues a call.

    Attributes:
        state: The `requestState` that the retry has to carry; None if there is none.
        inputs: The keys of `inputRequests`.
    """

    state: str | None
    inputs: frozenset[str]


_ID = rb'(0|-?[1-9][0-9]*|"[^"\\\x00-\x1f\x7f-\xff]*")'
# The two orders in which today's SDKs write a response. Each pattern matches only at the outer level of the object.
_ID_FIRST = re.compile(rb'\s*\{\s*"jsonrpc"\s*:\s*"2\.0"\s*,\s*"id"\s*:\s*' + _ID + rb'\s*,\s*"(result|error)"\s*:')
_RESULT_FIRST = re.compile(rb'\s*\{\s*"(result|error)"\s*:')
_ID_LAST = re.compile(rb',\s*"jsonrpc"\s*:\s*"2\.0"\s*,\s*"id"\s*:\s*' + _ID + rb"\s*\}\s*$")
# Requests and notifications, as every SDK writes them. Their id, if there is one, was chosen by the server
_NO_ANSWER = re.compile(rb'\s*\{\s*(?:"jsonrpc"\s*:\s*"2\.0"\s*,\s*)?(?:"id"\s*:\s*' + _ID + rb'\s*,\s*)?"method"\s*:')
# Members that change the outcome of a result
_TELLING = re.compile(rb'"(?:isError"\s*:\s*true|input_required")')

MAX_PARSED_ANSWER_BYTES: Final = 1024 * 1024
"""Of larger answers only both ends are looked at."""


def read_answer(frame: bytes, *, whole: bool = True) -> Answer | None:
    """Read a line of the server's as an answer.

    Args:
        frame: The line.
        whole: Whether it is the whole line; if not, it is its two ends.

    Returns:
        The answer; None for a request, a notification, or anything else that is not a response.
    """
    found = _shape(frame)
    if found:
        request_id, kind = found
        if kind == b"error":
            return Answer(request_id, "rpc_error")
        if not whole:
            return Answer(request_id, "unparsed")
        # Without these words it is neither an error nor a question: no SDK writes its own keys with escapes
        if not _TELLING.search(frame):
            return Answer(request_id, "ok")
    elif not whole or b'"id"' not in frame or _NO_ANSWER.match(frame):
        return None
    try:
        message = json.loads(frame)
    except (ValueError, RecursionError):
        return Answer(found[0], "unparsed") if found else None
    if not isinstance(message, dict) or message.get("method") is not None:
        return None
    answer_id = id_text(message.get("id"))
    return None if answer_id is None else _answer(answer_id, message)


def _shape(frame: bytes) -> tuple[str, bytes] | None:
    match = _ID_FIRST.match(frame)
    if match:
        return match[1].decode(), match[2]
    first = _RESULT_FIRST.match(frame)
    last = _ID_LAST.search(frame, max(0, len(frame) - 512)) if first else None
    return (last[1].decode(), first[1]) if first and last else None


def _answer(request_id: str, message: dict[str, object]) -> Answer:
    if message.get("error") is not None:
        return Answer(request_id, "rpc_error")
    result = message.get("result")
    if not isinstance(result, dict):
        return Answer(request_id, "ok")
    asks = None
    if result.get("resultType") == "input_required":
        state, inputs = result.get("requestState"), result.get("inputRequests")
        asks = Asks(
            state if isinstance(state, str) else None,
            frozenset(inputs) if isinstance(inputs, dict) else frozenset(),
        )
    return Answer(request_id, "tool_error" if result.get("isError") is True else "ok", asks)


class Line(NamedTuple):
    """A line of the server's that may be an answer: the whole line, or its two ends if it exceeds `MAX_PARSED_ANSWER_BYTES`."""

    frame: bytes
    whole: bool


class AnswerLines:
    """Cuts the server's stream into lines that may be answers, in bounded memory and with few passes over each byte."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._held = 0
        self._skipping = False

    @property
    def is_between_frames(self) -> bool:
        """Whether the stream so far ends with a newline."""
        return not (self._held or self._skipping)

    def feed(self, chunk: bytes) -> list[Line]:
        """The lines that `chunk` completes, except those without an id."""
        end = chunk.find(b"\n") + 1
        if not end:
            self._hold(chunk)
            return []
        lines = []
        start = 0
        if not self.is_between_frames:
            self._hold(chunk[:end])
            lines = self._finish()
            start = end
        last = chunk.rfind(b"\n") + 1
        # The start of a long line often shows that it is not an answer, which is cheaper than a search through all of it
        while (end := chunk.find(b"\n", start) + 1) - start > _LONG_BYTES and _NO_ANSWER.match(chunk, start):
            start = end
        if last > start and chunk.find(b'"id"', start, last) >= 0:
            lines += [Line(line, True) for line in chunk[start:last].split(b"\n") if b'"id"' in line]
        if last < len(chunk):
            self._hold(chunk[last:])
        return lines

    def last(self) -> list[Line]:
        """The unterminated last line, if it is a whole answer: one that was cut off answers nothing."""
        if self._skipping or not 0 < self._held <= MAX_PARSED_ANSWER_BYTES:
            return []
        lines = self._finish()
        try:
            json.loads(lines[0].frame)
        except (ValueError, RecursionError):
            return []
        return lines

    def _finish(self) -> list[Line]:
        whole = self._held <= MAX_PARSED_ANSWER_BYTES
        frame = b"".join(self._parts)
        self._parts.clear()
        self._held = 0
        skipped, self._skipping = self._skipping, False
        return [] if skipped else [Line(frame, whole)]

    def _hold(self, part: bytes) -> None:
        if self._skipping:
            return
        self._held += len(part)
        self._parts.append(part)
        if len(self._parts) == 1 and _NO_ANSWER.match(part):
            self._skipping = True
            self._parts.clear()
        elif self._held > MAX_PARSED_ANSWER_BYTES:
            kept = b"".join(self._parts)
            self._parts = [kept[:_LOOK_BYTES], kept[-_LOOK_BYTES:]]


_LONG_BYTES: Final = 4096
_LOOK_BYTES: Final = 1024
"""How much is kept of each end of a very long line: its id is in one of them."""
