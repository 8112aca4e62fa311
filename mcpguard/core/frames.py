"""From the client's bytes to JSON-RPC messages, strictly.

The guard must never judge one message while the server runs another. So a line is understood the one way that every JSON
parser shares, or it is refused: no key that two parsers would read differently (repeated, differing in case alone, cut at a
U+0000, or without its lone surrogates), no encoding that one repairs and another rejects, no second value on a line.
"""

import json
import re
from collections.abc import Callable, Iterable, Sequence
from json.scanner import make_scanner
from typing import Final, NamedTuple

from mcpguard.core.keys import RESERVED, RESERVED_PARAMS, FaultyObject, as_object, fault_in_keys
from mcpguard.core.skim import Outline, TooDeep, is_heavy

PARSE_ERROR: Final = -32700
INVALID_REQUEST: Final = -32600
INVALID_PARAMS: Final = -32602
"""Codes of JSON-RPC 2.0, section 5.1."""

MAX_DEPTH: Final = 512
"""Arrays and objects within one another. Deeper lines are refused: they could exhaust a recursive parser's stack."""

MAX_FRAME_BYTES: Final = 10 * 1024 * 1024
"""The longest line accepted from a client by default; TypeScript SDK servers close the connection on a longer one."""

MAX_BATCH: Final = 1024
"""Messages in a batch. Each of 5 million that fit into a line would cost an answer and an audit row: gigabytes at once."""

TOOLS_CALL: Final = "tools/call"
"""The one method of MCP that invokes a tool."""


class Frame(NamedTuple):
    """One message from the client that strict parsing understood.

    Attributes:
        raw: The bytes to forward, without a newline at the end.
        method: None for a response.
        id: The request's id as JSON text (`7`, `"a"`); None for a notification or a response.
        params: As parsed; None if absent.
    """

    raw: bytes
    method: str | None
    id: str | None
    params: object

    @property
    def is_call(self) -> bool:
        """Whether this is a `tools/call`; its `params` are then an object with a `name` that is text."""
        return self.method == TOOLS_CALL

    @property
    def is_retry(self) -> bool:
        """Whether this is a call that claims to continue one that the server has asked a question about."""
        params = self.params
        if self.method != TOOLS_CALL or not isinstance(params, dict):
            return False
        return "requestState" in params or "inputResponses" in params


class Refusal(NamedTuple):
    """A line, or a member of a batch, that must not reach the server.

    Attributes:
        code: The JSON-RPC error code.
        message: What is wrong with it, without quoting it.
        id: The id to answer with as JSON text, `null` if it has none that can be told.
        answered: Whether it is answered at all: if it has an id and its sender waits, so not if it is an answer itself.
        tool: The tool's name if it was a call that named one.
    """

    code: int
    message: str
    id: str = "null"
    answered: bool = True
    tool: str | None = None


class LongInteger(str):
    """An integer with more digits than Python converts (4,300), kept as its text."""

    __slots__ = ()


def _constant(name: str) -> object:
    raise ValueError(f"{name} is not JSON")


def _integer(digits: str) -> int | LongInteger:
    try:
        return int(digits)
    except ValueError:
        return LongInteger(digits)


def _scanner(**hooks: Callable[[str], object]) -> Callable[[str, int], tuple[object, int]]:
    """The parser that `JSONDecoder.raw_decode` calls; it raises `StopIteration` where a value is missing."""
    return make_scanner(json.JSONDecoder(object_pairs_hook=as_object, parse_constant=_constant, **hooks))  # type: ignore[arg-type]


_scan = _scanner()
# A hook for integers costs a call each, so it is used only where the line above has met one that is too long.
_scan_long = _scanner(parse_int=_integer)
_space = re.compile(r"[ \t\n\r]*").match

# Up to the next bracket, past texts. Possessive, and without a need for the closing quote: what does not parse is linear, too
_bracket = re.compile(rb'(?:[^"\[\]{}]++|"(?:[^"\\]++|\\.)*+"?)*+([\[\]{}])', re.DOTALL)

# C strings end at U+0000. ujson up to 4 drops a lone high surrogate: its "method\ud800" is "method".
_unequal = re.compile("[\0\ud800-\udfff]").search


def read(lines: Iterable[bytes | Refusal]) -> list[Frame | Refusal]:
    """The messages in what the client wrote, in order.

    Args:
        lines: Lines without their newlines, or what `LineSplitter` says of one that was too long.
    """
    messages: list[Frame | Refusal] = []
    for line in lines:
        messages += (line,) if isinstance(line, Refusal) else parse(line)
    return messages


def parse(line: bytes) -> Sequence[Frame | Refusal]:
    """Judge one line from the client.

    Args:
        line: The line without its newline; not blank.

    Returns:
        One element, or for a batch one for each member, in order.
    """
    outline: Outline | None = None
    try:
        text = line.decode()
        if is_heavy(line):
            del text
            outline = _outline(line)
            value = outline.value()
        elif line.count(b"[") + line.count(b"{") > MAX_DEPTH and _is_too_deep(line):
            raise TooDeep
        else:
            value = _whole(text)
    except TooDeep:
        return (Refusal(PARSE_ERROR, f"nested deeper than {MAX_DEPTH}"),)
    except UnicodeDecodeError:
        return (Refusal(PARSE_ERROR, "not valid UTF-8"),)
    except ValueError:
        return (Refusal(PARSE_ERROR, "not valid JSON"),)
    if isinstance(value, dict):
        return (_judge(value, line),)
    if not isinstance(value, list):
        return (Refusal(INVALID_REQUEST, "neither an object nor a batch"),)
    if not 0 < len(value) <= MAX_BATCH:
        return (Refusal(INVALID_REQUEST, f"a batch of none, or of more than {MAX_BATCH}"),)
    spans = (outline or _outline(line)).spans()
    return [
        _judge(member, line[start:end])
        if isinstance(member, dict)
        else Refusal(INVALID_REQUEST, "a batch of other than objects")
        for member, (start, end) in zip(value, spans, strict=True)
    ]


def _outline(line: bytes) -> Outline:
    return Outline(line, _whole, deepest=MAX_DEPTH, most=MAX_BATCH)


def _whole(text: str) -> object:
    """The one JSON value of a text.

    Raises:
        ValueError: It is not one.
    """
    start = _end_of_space(text, 0)
    try:
        try:
            value, end = _scan(text, start)
        except json.JSONDecodeError:
            raise
        except ValueError:  # NaN and its kin, or an integer of too many digits: the second try tells which
            value, end = _scan_long(text, start)
    except StopIteration:
        raise ValueError("a value is missing") from None
    if end != len(text) and _end_of_space(text, end) != len(text):
        raise ValueError("more than one value")
    return value


def _end_of_space(text: str, start: int) -> int:
    match = _space(text, start)
    return match.end() if match else start


def _is_too_deep(line: bytes) -> bool:
    depth = 0
    for match in iter(_bracket.scanner(line).match, None):  # type: ignore[attr-defined]  # one after the other, in linear time
        if match[1] in b"[{":
            depth += 1
            if depth > MAX_DEPTH:
                return True
        else:
            depth -= 1
    return False


def _judge(message: dict[str, object], raw: bytes) -> Frame | Refusal:
    """One JSON object, as a message or a refusal."""
    method, params = message.get("method"), message.get("params")
    request_id = id_text(message["id"]) if "id" in message else None
    fault = fault_in_keys(message, RESERVED)
    if fault:
        told = None if isinstance(message, FaultyObject) and message.has_two_ids else request_id
        return _refuse(message, INVALID_REQUEST, fault, told)
    if method is None and _waits(message):
        return _refuse(message, INVALID_REQUEST, "an id without a method, a result or an error", request_id)
    if method is None:
        request_id = None
    elif type(method) is not str:
        return _refuse(message, INVALID_REQUEST, "a method that is not a string", request_id)
    elif _unequal(method):
        return _refuse(message, INVALID_REQUEST, "U+0000 or a lone surrogate in the method", request_id)
    elif request_id is None and "id" in message:
        return _refuse(message, INVALID_REQUEST, "an id that is neither a string nor an integer", None)
    elif request_id is None and method == TOOLS_CALL:
        return _refuse(message, INVALID_REQUEST, "a tools/call without an id", None)
    fault = _fault_in_params(method, params)
    if fault:
        return _refuse(message, INVALID_PARAMS, fault, request_id)
    return Frame(one_line_for_all(raw), method, request_id, params)


def _refuse(message: dict[str, object], code: int, fault: str, request_id: str | None) -> Refusal:
    params = message.get("params")
    name = params.get("name") if isinstance(params, dict) else None
    return Refusal(
        code,
        fault,
        "null" if request_id is None else request_id,
        answered=_waits(message),
        tool=name if isinstance(name, str) and message.get("method") == TOOLS_CALL else None,
    )


def _waits(message: dict[str, object]) -> bool:
    """Whether the sender of this waits for an answer: it has an id, and is no answer itself."""
    return "id" in message and (message.get("method") is not None or not ("result" in message or "error" in message))


def id_text(value: object) -> str | None:
    """A request's id as JSON text; None if it is neither a string nor an integer."""
    if type(value) is int or type(value) is LongInteger:
        return str(value)
    if type(value) is str:
        return json.dumps(value)
    return None


def _fault_in_params(method: str | None, params: object) -> str | None:
    if isinstance(params, dict):
        fault = fault_in_keys(params, RESERVED_PARAMS)
        if fault:
            return f"{fault} in params"
    if method != TOOLS_CALL:
        return None
    name = params.get("name") if isinstance(params, dict) else None
    if type(name) is not str:
        return "a tools/call whose name is not a string"
    if _unequal(name):
        return "U+0000 or a lone surrogate in the tool's name"
    return None


def one_line_for_all(raw: bytes) -> bytes:
    r"""The same JSON value in bytes that no line splitter would take for more than one line.

    A raw CR, which strict JSON has between tokens only, becomes a space; raw U+0085, U+2028 and U+2029, which it has in
    strings only, become escapes. Python SDK servers split their input at a lone CR, Node's `readline` at U+2028, Python's
    `splitlines` at all four.

    >>> one_line_for_all('["\u2028"]\r'.encode())
    b'["\\u2028"] '
    """
    raw = raw.replace(b"\r", b" ")
    if raw.isascii():
        return raw
    for char in ("\u0085", "\u2028", "\u2029"):
        raw = raw.replace(char.encode(), b"\\u%04x" % ord(char))
    return raw


class LineSplitter:
    """Cuts a stream into lines, discarding one that is too long as it streams in.

    Args:
        max_frame_bytes: The longest line, without its newline.
    """

    def __init__(self, max_frame_bytes: int = MAX_FRAME_BYTES) -> None:
        self._max = max_frame_bytes
        self._parts: list[bytes] = []
        self._held = 0

    def feed(self, chunk: bytes) -> list[bytes | Refusal]:
        """The lines that `chunk` completes, without newlines; a `Refusal` stands for a line that was too long."""
        *complete, rest = chunk.split(b"\n")
        lines = [line for last in complete if (last or self._held) and (line := self._end(last))]
        if rest:
            self._hold(rest)
        return lines

    def finish(self) -> list[bytes | Refusal]:
        """The unterminated last line, if there is one; the stream has ended."""
        line = self._end(b"")
        return [line] if line else []

    def _hold(self, part: bytes) -> None:
        self._held += len(part)
        if self._held > self._max:
            self._parts.clear()
        elif part:
            self._parts.append(part)

    def _end(self, last: bytes) -> bytes | Refusal:
        if self._held or len(last) > self._max:
            self._hold(last)
            line = b"".join(self._parts)
            too_long = self._held > self._max
            self._parts.clear()
            self._held = 0
            if too_long:
                return Refusal(PARSE_ERROR, f"longer than {self._max} bytes")
        else:
            line = last
        return line if line.strip(b" \t\r") else b""
