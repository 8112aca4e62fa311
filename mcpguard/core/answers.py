"""What the server's frames answer, read off after they have passed.

Nothing here can hold a frame up or change it: an answer that is not understood has only an unknown outcome.
"""

import json
import re
from typing import Final, NamedTuple

from mcpguard.core.frames import id_text


class Answer(NamedTuple):
    """A server's response to a request.

    Attributes:
        id: The request's id as JSON text.
        outcome: `ok`, `tool_error`, `rpc_error`, or `unparsed` if it was too large to tell.
        asks: For a result of type `input_required`, what the retry will carry; else None.
    """

    id: str
    outcome: str
    asks: "Asks | None" = None


class Asks(NamedTuple):
    """What a server asks for before it goes on with a call.

    Attributes:
        state: The `requestState` that the retry has to carry; None if there is none.
        inputs: The keys of `inputRequests`.
    """

    state: str | None
    inputs: frozenset[str]


_ID = rb'(0|-?[1-9][0-9]*|"[^"\\\x00-\x1f\x7f-\xff]*")'
# The two orders in which the SDKs of today write a response. Each matches at one place of the object's own level only.
_ID_FIRST = re.compile(rb'\s*\{\s*"jsonrpc"\s*:\s*"2\.0"\s*,\s*"id"\s*:\s*' + _ID + rb'\s*,\s*"(result|error)"\s*:')
_RESULT_FIRST = re.compile(rb'\s*\{\s*"(result|error)"\s*:')
_ID_LAST = re.compile(rb',\s*"jsonrpc"\s*:\s*"2\.0"\s*,\s*"id"\s*:\s*' + _ID + rb"\s*\}\s*$")
_IS_ERROR = re.compile(rb'(?<!\\)"isError"\s*:\s*true')

_LOOK_BYTES: Final = 64 * 1024
MAX_PARSED_ANSWER_BYTES: Final = 1024 * 1024
"""Larger answers are looked at from both ends only."""


def read_answer(frame: bytes) -> Answer | None:
    """What one line from the server answers.

    Args:
        frame: The whole line; of one over `MAX_PARSED_ANSWER_BYTES` its beginning and end will do.

    Returns:
        None for a request, a notification, or what is not a response at all.
    """
    found = _shape(frame)
    whole = len(frame) <= MAX_PARSED_ANSWER_BYTES
    if found:
        request_id, kind = found
        if kind == b"error":
            return Answer(request_id, "rpc_error")
        # Neither word, so neither meaning: no SDK spells its own keys with escapes
        if b'"input_required"' not in frame and not (b'"isError"' in frame and _IS_ERROR.search(frame)):
            return Answer(request_id, "ok" if whole else "unparsed")
        if not whole:
            return Answer(request_id, "unparsed")
    elif not whole or b'"id"' not in frame:
        return None
    try:
        message = json.loads(frame)
    except (ValueError, RecursionError):
        return None
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


class AnswerLines:
    """Cuts the server's stream into the lines that may be answers, in bounded memory.

    Of a line over `MAX_PARSED_ANSWER_BYTES` only its two ends are kept.
    """

    def __init__(self) -> None:
        self._held = bytearray()

    @property
    def is_between_frames(self) -> bool:
        """Whether the stream so far ended with a newline."""
        return not self._held

    def feed(self, chunk: bytes) -> list[bytes]:
        """The lines that `chunk` completes, without those that have no id."""
        end = chunk.find(b"\n") + 1
        if not end:
            self._hold(chunk)
            return []
        lines = []
        start = 0
        if self._held:
            self._hold(chunk[:end])
            lines.append(bytes(self._held))
            self._held.clear()
            start = end
        last = chunk.rfind(b"\n") + 1
        if last > start and chunk.find(b'"id"', start, last) >= 0:
            lines += chunk[start:last].split(b"\n")
        if last < len(chunk):
            self._hold(chunk[last:])
        return [line for line in lines if b'"id"' in line]

    def _hold(self, part: bytes) -> None:
        self._held += part
        if len(self._held) > 2 * MAX_PARSED_ANSWER_BYTES + _LOOK_BYTES:
            # its beginning stays, its middle goes; what is left is still longer than a line that is parsed
            del self._held[_LOOK_BYTES:-MAX_PARSED_ANSWER_BYTES]
