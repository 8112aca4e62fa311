"""Reads outcomes from the server's frames after the frames have passed, so that it cannot delay or change a frame."""

import json
import re
from typing import Final, NamedTuple

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

_LONG_BYTES: Final = 4096
"""Lines longer than this are skipped if their first bytes show that they are not answers."""

_ID = rb'(0|-?[1-9][0-9]*|"[^"\\\x00-\x1f\x7f-\xff]*")'
_VERSION = rb'"jsonrpc"\s*:\s*"2\.0"\s*'
# The orders in which libraries write a response. Each pattern matches only at the outer level of the object.
_KIND = rb'"(result|error)"\s*:\s*+(?!null)'  # some servers write both, and null for the one that there is not
_ID_FIRST = re.compile(rb"\s*\{\s*" + _VERSION + rb',\s*"id"\s*:\s*' + _ID + rb"\s*,\s*" + _KIND)
_VERSION_SECOND = re.compile(rb'\s*\{\s*"id"\s*:\s*' + _ID + rb"\s*,\s*" + _VERSION + rb",\s*" + _KIND)
_RESULT_FIRST = re.compile(rb"\s*\{\s*(?:" + _VERSION + rb",\s*)?+" + _KIND)
_ID_LAST = re.compile(rb',\s*"id"\s*:\s*' + _ID + rb"\s*(?:,\s*" + _VERSION + rb")?+\}\s*$")
# The two ends of a large answer cannot be parsed. So any id is found there, in any order, and without a version
_ANY_ID = rb'"id"\s*:\s*(-?[0-9]+(?:\.0+)?|"(?:[^"\\\x00-\x1f]++|\\.)*+")\s*'
_OTHER = rb'"(?:jsonrpc"\s*:\s*"2\.0"|(?:result|error)"\s*:\s*null)\s*'
_BEGINNING = re.compile(rb"\s*\{\s*(?:" + _OTHER + rb",\s*)*+(?:" + _ANY_ID + rb",\s*)?+(?:" + _OTHER + rb",\s*)*+" + _KIND)
_END = re.compile(rb",\s*" + _ANY_ID + rb"(?:,\s*" + _OTHER + rb")*+\}\s*$")
# Requests and notifications, as every SDK writes them. The id of such a request is the server's
_NO_ANSWER = re.compile(rb'\s*\{\s*(?:"jsonrpc"\s*:\s*"2\.0"\s*,\s*)?(?:"id"\s*:\s*' + _ID + rb'\s*,\s*)?"method"\s*:')
# Letters that are written as escapes. No SDK writes its keys so, but every parser reads such keys
_ESCAPED_LETTER = re.compile(rb"\\u00(?:[46][1-9a-fA-F]|[57][0-9aA])")
_ESCAPE = re.compile(rb"\\(?:u00([46][1-9a-fA-F]|[57][0-9aA])|.)", re.DOTALL)
# Members of a result that is not simply `ok`
_NEEDS_PARSING = re.compile(rb'"(?:isError"\s*:\s*true|input_required")')


def read_answer(frame: bytes, *, whole: bool = True) -> Answer | None:
    """Read a line from the server as an answer.

    Args:
        frame: The line, or its two ends.
        whole: Whether it is the whole line.

    Returns:
        The answer; None for a request, a notification, or anything else that is not a response.
    """
    if _has_escaped_letter(frame, 0, len(frame)):
        frame = _ESCAPE.sub(lambda match: bytes.fromhex(match[1].decode()) if match[1] else match[0], frame)
    if not whole:
        return _read_ends(frame)
    found = _shape(frame)
    if found:
        request_id, kind = found
        if kind == b"error":
            return Answer(request_id, "rpc_error")
        # Without these bytes it is `ok` and needs no input
        if not ((b"true" in frame or b"input_required" in frame) and _NEEDS_PARSING.search(frame)):
            return Answer(request_id, "ok")
    elif b'"id"' not in frame or _NO_ANSWER.match(frame):
        return None
    try:
        message = json.loads(frame)
    except (ValueError, RecursionError):
        return Answer(found[0], "unparsed") if found else None
    return _answer(message)


def _has_escaped_letter(data: bytes, start: int, end: int) -> bool:
    at = data.find(b"\\u00", start, end)  # in a tenth of the pattern's time
    return at >= 0 and _ESCAPED_LETTER.search(data, at, end) is not None


def _shape(frame: bytes) -> tuple[str, bytes] | None:
    match = _ID_FIRST.match(frame) or _VERSION_SECOND.match(frame)
    if match:
        return match[1].decode(), match[2]
    first = _RESULT_FIRST.match(frame)
    last = _ID_LAST.search(frame, max(0, len(frame) - 512)) if first else None
    return (last[1].decode(), first[1]) if first and last else None


def _read_ends(frame: bytes) -> Answer | None:
    beginning = _BEGINNING.match(frame)
    with_id = beginning if beginning is None or beginning[1] else _END.search(frame)
    if beginning is None or with_id is None:
        return None
    try:
        request_id = _id_text(json.loads(with_id[1]))
    except ValueError:
        return None
    return None if request_id is None else Answer(request_id, "rpc_error" if beginning[2] == b"error" else "unparsed")


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


def read_batch(frame: bytes) -> list[Answer]:
    """Read a line from the server as a batch of answers, which protocol version 2025-03-26 allows.

    Args:
        frame: The whole line.
    """
    try:
        messages = json.loads(frame)
    except (ValueError, RecursionError):
        return []
    found = map(_answer, messages) if isinstance(messages, list) else ()
    return [answer for answer in found if answer is not None]


class Line(NamedTuple):
    """A line from the server that may be an answer: all of it, or its two ends if it exceeds `MAX_PARSED_ANSWER_BYTES`."""

    frame: bytes
    whole: bool


def _may_have_id(line: bytes) -> bool:
    return b'"id"' in line or _has_escaped_letter(line, 0, len(line))


class AnswerLines:
    """Cuts the server's stream into lines that may be answers, in bounded memory and with few passes over each byte."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._held = 0
        self._skipping = False  # the rest of a line that is not an answer

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
        # A look at the start of a long line is cheaper than a search for an id through all of it
        while (end := chunk.find(b"\n", start) + 1) - start > _LONG_BYTES and _NO_ANSWER.match(chunk, start):
            start = end
        if last > start and (chunk.find(b'"id"', start, last) >= 0 or _has_escaped_letter(chunk, start, last)):
            lines += [Line(line, True) for line in chunk[start:last].split(b"\n") if _may_have_id(line)]
        if last < len(chunk):
            self._hold(chunk[last:])
        return lines

    def last(self) -> list[Line]:
        """The unterminated last line if it is valid JSON: a line that was cut off answers nothing."""
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
            self._parts = [kept[:_END_BYTES], kept[-_END_BYTES:]]
