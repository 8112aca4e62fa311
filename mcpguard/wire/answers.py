"""Reads outcomes from the server's frames after the frames have passed, so that it cannot delay or change a frame."""

import json
import re

from mcpguard.light_typing import Final, NamedTuple
from mcpguard.wire.frames import id_text


class Answer(NamedTuple):
    """A server's response to a request.

    Attributes:
        id: The request's id as JSON text.
        outcome: `ok`, `tool_error`, `rpc_error`, or `unparsed` if it was too large to parse, or is not valid JSON.
        wanted: What the retry has to carry if the result is of type `input_required`; else None.
    """

    id: str
    outcome: str
    wanted: "RetryInput | None" = None


class RetryInput(NamedTuple):
    """What a retry has to carry so that the server continues the call.

    Attributes:
        state: Its `requestState`; None if there is none.
        keys: The keys of its `inputResponses`, which are those of the server's `inputRequests`.
    """

    state: str | None
    keys: frozenset[str]


MAX_PARSED_ANSWER_BYTES: Final = 1024 * 1024
"""Of larger answers only both ends are parsed."""

_END_BYTES: Final = 1024
"""How much is kept of each end of a larger answer: its id is in one of them."""

# The shapes in which libraries write a response, at the outer level of the object: its id is first or last
_ID = rb'"id"\s*:\s*(-?[0-9]+(?:\.0+)?|"(?:[^"\\\x00-\x1f]++|\\.)*+")\s*'
_OTHER = rb'"(?:jsonrpc"\s*:\s*"2\.0"|(?:result|error)"\s*:\s*null)\s*'  # some servers write both, and null for one
_KIND = rb'"(result|error)"\s*:\s*+(?!null)'
_BEGINNING = re.compile(rb"\s*\{\s*(?:" + _OTHER + rb",\s*)*+(?:" + _ID + rb",\s*)?+(?:" + _OTHER + rb",\s*)*+" + _KIND)
_END = re.compile(rb",\s*" + _ID + rb"(?:,\s*" + _OTHER + rb")*+\}\s*$")
# Requests and notifications, as every SDK writes them. The id of such a request is the server's
_NO_ANSWER = re.compile(rb'\s*\{\s*(?:"jsonrpc"\s*:\s*"2\.0"\s*,\s*)?(?:' + _ID + rb',\s*)?"method"\s*:')
# Letters that are written as escapes. No SDK writes its keys so, but every parser reads such keys
_ESCAPED: Final = b"\\u00"
_ESCAPE = re.compile(rb"\\(?:u00([46][1-9a-fA-F]|[57][0-9aA])|.)", re.DOTALL)
# Members of a result that is not simply `ok`
_NEEDS_PARSING = re.compile(rb'"(?:isError"\s*:\s*true|input_required")')


class Line(NamedTuple):
    """A line from the server that may be an answer: all of it, or its two ends if it exceeds `MAX_PARSED_ANSWER_BYTES`."""

    frame: bytes
    whole: bool = True


def read(line: Line) -> list[Answer]:
    """The answers in a line from the server: none in a request, a notification, or anything else that is not a response.

    Protocol version 2025-03-26 allows several, in a batch.
    """
    frame, whole = line
    if _ESCAPED in frame:
        frame = _ESCAPE.sub(lambda match: bytes.fromhex(match[1].decode()) if match[1] else match[0], frame)
    shape = _BEGINNING.match(frame)
    with_id = shape and (shape if shape[1] else _END.search(frame, max(0, len(frame) - _END_BYTES)))
    request_id = _id_in(with_id[1]) if with_id else None
    if shape and request_id is not None:
        if shape[2] == b"error":
            return [Answer(request_id, "rpc_error")]
        if not whole:
            return [Answer(request_id, "unparsed")]
        if not ((b"true" in frame or b"input_required" in frame) and _NEEDS_PARSING.search(frame)):
            return [Answer(request_id, "ok")]
    elif not whole or b'"id"' not in frame or _NO_ANSWER.match(frame):
        return []
    try:
        message = json.loads(frame)
    except (ValueError, RecursionError):
        return [] if request_id is None else [Answer(request_id, "unparsed")]
    found = map(_answer, message if isinstance(message, list) else [message])
    return [answer for answer in found if answer is not None]


def _id_in(text: bytes) -> str | None:
    """The id in a response's text, as JSON text."""
    try:
        return str(int(text)) if text.isdigit() else _id_text(json.loads(text))
    except ValueError:
        return None


def _id_text(value: object) -> str | None:
    """A response's id as JSON text. Some servers read every number as a double, and answer the request 7 as 7.0."""
    return str(int(value)) if type(value) is float and value.is_integer() else id_text(value)


def _answer(message: object) -> Answer | None:
    """The answer in a parsed message; None if it is none."""
    if not isinstance(message, dict) or message.get("method") is not None:
        return None
    request_id = _id_text(message.get("id"))
    if request_id is None:
        return None
    if message.get("error") is not None:
        return Answer(request_id, "rpc_error")
    result = message.get("result")
    if not isinstance(result, dict):
        return Answer(request_id, "ok")
    wanted = None
    if result.get("resultType") == "input_required":
        state, inputs = result.get("requestState"), result.get("inputRequests")
        wanted = RetryInput(
            state if isinstance(state, str) else None,
            frozenset(inputs) if isinstance(inputs, dict) else frozenset(),
        )
    return Answer(request_id, "tool_error" if result.get("isError") is True else "ok", wanted)


class AnswerLines:
    """Cuts the server's stream into lines, in bounded memory. See `read`: not all of them are answers."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._held = 0
        self._is_skipping = False  # whether the line that has begun is no answer

    @property
    def is_between_frames(self) -> bool:
        """Whether the stream so far ends with a newline."""
        return not self._held

    def feed(self, chunk: bytes) -> list[Line]:
        """The lines that `chunk` completes; those that begin in it only if it has an id."""
        *lines, rest = chunk.split(b"\n")
        found = []
        if lines and self._held:
            self._hold(lines.pop(0))
            found = [self._finish()]
        if b'"id"' in chunk or _ESCAPED in chunk:  # one search through many short notifications is faster than a look at each
            found += map(Line, lines)
        if rest:
            self._hold(rest)
        return found

    def last(self) -> list[Line]:
        """The unterminated last line if it is valid JSON: a line that was cut off answers nothing."""
        if not 0 < self._held <= MAX_PARSED_ANSWER_BYTES:
            return []
        line = self._finish()
        try:
            json.loads(line.frame)
        except (ValueError, RecursionError):
            return []
        return [line]

    def _finish(self) -> Line:
        line = Line(b"".join(self._parts), self._held <= MAX_PARSED_ANSWER_BYTES)
        self._parts.clear()
        self._held = 0
        return line

    def _hold(self, part: bytes) -> None:
        if not self._held:  # one look at the beginning: to join and to search a long line takes as long as to pass it on
            self._is_skipping = _NO_ANSWER.match(part) is not None
        self._held += len(part)
        if self._is_skipping:
            return
        self._parts.append(part)
        if self._held > MAX_PARSED_ANSWER_BYTES:
            kept = b"".join(self._parts)
            self._parts = [kept[:_END_BYTES], kept[-_END_BYTES:]]
