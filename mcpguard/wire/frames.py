"""Parses the client's bytes into JSON-RPC messages, strictly.

The server must run the very message that mcpguard judges. So a line is accepted only if every JSON parser reads it in the same
way. These lines are refused: one with a key that two parsers would read differently (repeated, differing only by case, cut at
U+0000, or read without its lone surrogates); one with an encoding that one parser repairs and another rejects; and one with two
values.
"""

import json
from collections.abc import Callable, Sequence
from json.scanner import make_scanner

from mcpguard.light_typing import TYPE_CHECKING, Any, Final, NamedTuple
from mcpguard.text.digest import blake2b
from mcpguard.wire.keys import RESERVED, RESERVED_PARAMS, FaultyObject, as_object, fault_in_keys, has_surrogate

if TYPE_CHECKING:  # loaded with the first line that needs them
    from mcpguard.wire.form import Form

PARSE_ERROR: Final = -32700
INVALID_REQUEST: Final = -32600
INVALID_PARAMS: Final = -32602
"""Codes of JSON-RPC 2.0, section 5.1."""

MAX_DEPTH: Final = 512
"""How deep arrays and objects may be nested. Deeper lines are refused: they could exhaust a recursive parser's stack."""

MAX_FRAME_BYTES: Final = 10 * 1024 * 1024
"""The longest line accepted from a client by default; TypeScript SDK servers close the connection on a longer one."""

MAX_BATCH: Final = 1024
"""How many messages a batch may have. A line has room for 5 million, whose answers and audit rows would take gigabytes."""

HEAVY_PARTS: Final = 50_000
"""A line with more commas and opening brackets than this is heavy: building all of it could take many times its size."""

_SHORT_BYTES: Final = MAX_DEPTH
"""A line up to this length can be neither nested too deeply nor heavy."""

_CALLS_A_FORM: Final = 4
"""How many lines are parsed before another form is made: making one takes as long as parsing a few lines."""

_EXACT_DIGITS: Final = 15
"""Up to this many digits, all parsers read an integer alike."""

_SHORT_CHARS: Final = 64
"""Longer ids are known by a hash, so that those of many requests take little memory."""

_BOM: Final = b"\xef\xbb\xbf"

_CR: Final = ord("\r")  # found in bytes in a tenth of the time that b"\r" takes

TOOLS_CALL: Final = "tools/call"
"""The only method of MCP that invokes a tool."""


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
    params: Any

    @property
    def is_call(self) -> bool:
        """Whether this is a `tools/call`. If so, its `params` are an object with a `name` that is a string."""
        return self.method == TOOLS_CALL

    @property
    def tool(self) -> str | None:
        """Of a call: the tool's name; else None."""
        return str(self.params["name"]) if self.is_call else None


class Refusal(NamedTuple):
    """A line, or a member of a batch, that must not reach the server.

    Attributes:
        code: The JSON-RPC error code.
        message: What is wrong with the line. It quotes nothing of it.
        id: The id of the answer as JSON text; `null` if the message has no id or an ambiguous one.
        answered: Whether it must be answered, because its sender waits or cannot be told from one that waits.
        tool: The tool's name if it is a call that names one.
    """

    code: int
    message: str
    id: str = "null"
    answered: bool = True
    tool: str | None = None


class LongInteger(str):
    """An integer with more digits than Python converts (4,300), kept as text."""

    __slots__ = ()


def refuse_constant(name: str) -> object:
    """Refuse `NaN` and `Infinity`, which Python reads as numbers: the `parse_constant` of a strict parser.

    Raises:
        ValueError: Always.
    """
    raise ValueError(f"{name} is not JSON")


def _integer(digits: str) -> int | LongInteger:
    try:
        return int(digits)
    except ValueError:
        return LongInteger(digits)


def _scanner(**hooks: Callable[[str], object]) -> Callable[[str, int], tuple[object, int]]:
    """The parser that `JSONDecoder.raw_decode` calls. It raises `StopIteration` if a value is missing."""
    return make_scanner(json.JSONDecoder(object_pairs_hook=as_object, parse_constant=refuse_constant, **hooks))  # type: ignore[arg-type]


_scan = _scanner()
# This parser calls a hook for each integer, so it is used only for a line on which `_scan` has failed.
_scan_long = _scanner(parse_int=_integer)


def read(lines: Sequence[bytes | Refusal]) -> list[Frame | Refusal]:
    """The messages in some lines, which are not a client's first; see `MessageReader.read`."""
    return MessageReader(is_at_start=False).read(lines)


class MessageReader:
    """Reads the messages of one client. It remembers the form of a call, because a client writes all its calls alike.

    Args:
        is_at_start: Whether the client's first line is still to come. A byte order mark before it is dropped.
    """

    def __init__(self, *, is_at_start: bool = True) -> None:
        self._is_at_start = is_at_start
        self._form: Form | None = None
        self._parsed = _CALLS_A_FORM  # since the form was made

    def read(self, lines: Sequence[bytes | Refusal]) -> list[Frame | Refusal]:
        """The messages in what the client wrote, in order.

        Args:
            lines: Lines without their newlines; a `Refusal` stands for a line that was too long.
        """
        messages: list[Frame | Refusal] = []
        for line in lines:
            if not isinstance(line, bytes):
                self._is_at_start = False
                messages.append(line)
                continue
            found = self._form.read(line) if self._form is not None and len(line) <= _SHORT_BYTES else None
            if found is None:
                if self._is_at_start:
                    self._is_at_start = False
                    line = line.removeprefix(_BOM)
                    if not line.strip(b" \t\r"):
                        continue
                parsed = parse(line)
                messages += parsed
                if len(parsed) == 1:
                    self._learn(line, parsed[0])
                continue
            request_id, params = found
            id_as_text = str(request_id) if type(request_id) is int else id_text(request_id)
            if id_as_text is None:
                messages += parse(line)
            else:
                raw = line if line.isascii() and _CR not in line else escape_line_separators(line)
                messages.append(tuple.__new__(Frame, (raw, TOOLS_CALL, id_as_text, params)))
        return messages

    def _learn(self, line: bytes, message: Frame | Refusal) -> None:
        """Make a form of a call that has another one than calls before it, unless one was made just before."""
        if isinstance(message, Frame) and message.is_call and isinstance(message.params, dict) and len(line) <= _SHORT_BYTES:
            self._parsed += 1
            if self._parsed > _CALLS_A_FORM:
                from mcpguard.wire.form import Form

                self._form = Form.of(line.decode(), message.params, _scan) or self._form
                self._parsed = 0


def parse(line: bytes) -> Sequence[Frame | Refusal]:
    """The message of one line, or the members of a batch, in order.

    Args:
        line: The line without its newline; not blank.
    """
    spans: Sequence[tuple[int, int]] = ()
    try:
        text = line.decode()
        if len(line) <= _SHORT_BYTES:
            value = _whole(text)
        elif is_heavy(line):
            del text
            value, spans = _skim(line)
        else:
            if line.count(b"[") + line.count(b"{") > MAX_DEPTH:
                _skim(line)  # raises if they are nested too deeply
            value = _whole(text)
    except RecursionError:
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
        return (Refusal(INVALID_REQUEST, f"a batch must have 1 to {MAX_BATCH} messages"),)
    return [
        _judge(member, line[start:end])
        if isinstance(member, dict)
        else Refusal(INVALID_REQUEST, "a member of a batch that is not an object")
        for member, (start, end) in zip(value, spans or _skim(line)[1], strict=True)
    ]


def is_heavy(line: bytes) -> bool:
    """Whether a line has so many parts that it is skimmed."""
    return len(line) > HEAVY_PARTS and line.count(b",") + line.count(b"[") + line.count(b"{") > HEAVY_PARTS


def _skim(line: bytes) -> tuple[object, Sequence[tuple[int, int]]]:
    """The value of a line, and the spans of its members if it is a batch; see `Skimmer.read`."""
    from mcpguard.wire.skim import Skimmer  # with the first heavy line or batch: few sessions see one

    return Skimmer(line, _whole, max_depth=MAX_DEPTH, max_batch=MAX_BATCH).read()


def _whole(text: str) -> object:
    """The JSON value of a text.

    Raises:
        ValueError: The text is not exactly one JSON value.
    """
    start = 0 if text[:1] in "{[" else _end_of_space(text, 0)
    try:
        try:
            value, end = _scan(text, start)
        except json.JSONDecodeError:
            raise
        except ValueError:  # an integer with too many digits, or NaN or Infinity, on which the second try fails, too
            value, end = _scan_long(text, start)
    except StopIteration:
        raise ValueError("a value is missing") from None
    if end != len(text) and _end_of_space(text, end) != len(text):
        raise ValueError("more than one value")
    return value


def _end_of_space(text: str, start: int) -> int:
    return len(text) - len(text[start:].lstrip(" \t\n\r"))


def _judge(message: dict[str, object], raw: bytes) -> Frame | Refusal:
    """Check one JSON object."""
    method, params, request_id = message.get("method"), message.get("params"), message.get("id")
    if (
        method == TOOLS_CALL
        and type(request_id) is int
        and message.keys() <= RESERVED
        and type(message) is type(params) is dict
        and params.keys() <= RESERVED_PARAMS
        and type(name := params.get("name")) is str
        and name.isascii()
        and "\0" not in name
        and raw.isascii()
        and _CR not in raw
    ):  # a usual call, which has none of the faults below
        return tuple.__new__(Frame, (raw, method, str(request_id), params))  # half the time of `Frame(…)`
    request_id = id_text(request_id)
    fault = fault_in_keys(message, RESERVED)
    if fault:
        is_ambiguous = isinstance(message, FaultyObject) and message.has_two_ids
        return _refuse(message, INVALID_REQUEST, fault, None if is_ambiguous else request_id)
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
    return Frame(escape_line_separators(raw), method, request_id, params)


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
    """Whether the sender waits for an answer: the message has an id, and is not an answer itself."""
    return "id" in message and (message.get("method") is not None or not ("result" in message or "error" in message))


def id_text(value: object) -> str | None:
    """A request's id as JSON text; None if it is neither a string nor an integer."""
    if type(value) is int or type(value) is LongInteger:
        return str(value)
    if type(value) is str:
        return json.dumps(value)
    return None


def id_key(request_id: str) -> str:
    """What an id has in common with all ids that a server could not tell from it.

    Some servers write the id 7 as `"7"`, and the clients of both SDKs take that for its answer. Others read every number as a
    double, so that two large integers become one.

    Args:
        request_id: The id as JSON text; see `id_text`.
    """
    if request_id[-1:] != '"' and len(request_id) <= _EXACT_DIGITS:
        return request_id
    key = request_id.strip('"')
    if len(key) > _EXACT_DIGITS and key.removeprefix("-").isdecimal():
        number = float(key)
        if abs(number) < float("inf"):
            return repr(number)
    return key if len(key) <= _SHORT_CHARS else blake2b(key.encode(), digest_size=16).hexdigest()


def _unequal(text: str) -> bool:
    r"""Whether parsers read a text differently.

    C strings end at U+0000. ujson up to 4 drops a lone high surrogate: it reads "method\ud800" as "method".
    """
    return "\0" in text or has_surrogate(text)


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


def escape_line_separators(raw: bytes) -> bytes:
    r"""The same JSON value, in bytes that every line splitter takes for one line.

    A raw CR becomes a space, because strict JSON has it only between tokens. Raw U+0085, U+2028 and U+2029 become escapes,
    because strict JSON has them only in strings. Python SDK servers split their input at a lone CR, Node's `readline` at
    U+2028, Python's `splitlines` at all four.

    >>> escape_line_separators('["\u2028"]\r'.encode())
    b'["\\u2028"] '
    """
    raw = raw.replace(b"\r", b" ")
    if raw.isascii():
        return raw
    for char in ("\u0085", "\u2028", "\u2029"):
        raw = raw.replace(char.encode(), b"\\u%04x" % ord(char))
    return raw


class LineSplitter:
    """Cuts a stream into lines. A line that is too long is discarded as it streams in.

    Args:
        max_frame_bytes: The longest line, without its newline.
    """

    def __init__(self, max_frame_bytes: int = MAX_FRAME_BYTES) -> None:
        self._max = max_frame_bytes
        self._parts: list[bytes] = []
        self._part_bytes = 0

    def feed(self, chunk: bytes) -> list[bytes | Refusal]:
        """The lines that `chunk` completes, without newlines or blank lines; a `Refusal` stands for one that was too long."""
        if not self._part_bytes and chunk.find(b"\n") == len(chunk) - 1 <= self._max:  # usually it is one line
            return [chunk[:-1]] if chunk.strip(b" \t\r\n") else []
        *complete, rest = chunk.split(b"\n")
        lines = [line for part in complete if (part or self._part_bytes) and (line := self._end(part))]
        if rest:
            self._keep(rest)
        return lines

    def finish(self) -> list[bytes | Refusal]:
        """The unterminated last line, if there is one. Call it at the end of the stream."""
        line = self._end(b"")
        return [line] if line else []

    def _keep(self, part: bytes) -> None:
        self._part_bytes += len(part)
        if self._part_bytes > self._max:
            self._parts.clear()
        else:
            self._parts.append(part)

    def _end(self, last: bytes) -> bytes | Refusal:
        """The line that ends with this part; empty if it is blank."""
        if self._part_bytes or len(last) > self._max:
            self._keep(last)
            line = b"".join(self._parts)
            too_long = self._part_bytes > self._max
            self._parts.clear()
            self._part_bytes = 0
            if too_long:
                return Refusal(PARSE_ERROR, f"longer than {self._max} bytes")
        else:
            line = last
        return line if line.strip(b" \t\r") else b""
