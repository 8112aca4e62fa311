"""How servers read: what each kind of parser would make of the bytes that reach it.

A kind is a way to decode, a way to cut lines, a way to take values off a line, and a way to look up a key. Each of them is
somebody's; none has to be right.
"""

import re
from collections.abc import Callable, Iterator
from enum import Enum
from typing import Final, NamedTuple, TypeAlias, TypeGuard

from tests.fuzz.json_text import LENIENT, STRICT, Pairs, Reader, Value, is_text

TOOLS_CALL: Final = "tools/call"


class Missing(Enum):
    MISSING = "no such key"


MISSING: Final = Missing.MISSING
Found: TypeAlias = "Value | Missing"
Lookup = Callable[[Pairs, str], Found]
Text = Callable[[str], str]


class Reading(NamedTuple):
    """A message as one parser sees it."""

    method: str | None  # None if it has none that is text
    id: str  # as it is written, with its type; empty if it has none
    tool: str | None = None  # of a call, the name; `(none)` if it has none that is text
    rest: str = ""  # of a call, the other things in `params` that make a difference to a server


# Bytes to text


def _overlong(data: bytes) -> str:
    """Two- and three-byte forms of characters that need fewer, as decoders took them that do not check."""

    def short(match: re.Match[bytes]) -> bytes:
        code = 0
        for byte in match[0]:
            code = code << 6 | byte & 0x3F
        return chr(code & 0x7FF).encode()

    return re.sub(rb"[\xc0\xc1][\x80-\xbf]|\xe0[\x80-\x9f][\x80-\xbf]", short, data).decode(errors="replace")


def _decoded(data: bytes, errors: str) -> str:
    try:
        return data.decode(errors=errors)
    except UnicodeDecodeError:
        return ""


DECODERS: Final[dict[str, Callable[[bytes], str]]] = {
    "UTF-8": lambda data: "\n".join(_decoded(line, "strict") for line in data.split(b"\n")),
    "UTF-8, U+FFFD for the rest": lambda data: data.decode(errors="replace"),
    "UTF-8, the rest dropped": lambda data: data.decode(errors="ignore"),
    "UTF-8, surrogates taken": lambda data: _decoded(data, "surrogatepass"),
    "UTF-8, overlong forms taken": _overlong,
    "UTF-8, BOM skipped": lambda data: re.sub("^\ufeff", "", data.decode(errors="replace"), flags=re.MULTILINE),
}


# Text to lines

SPLITTERS: Final[dict[str, Callable[[str], list[str]]]] = {
    "LF": lambda text: text.split("\n"),
    "CR too": lambda text: re.split("\r\n|\r|\n", text),
    "Node's readline": lambda text: re.split("\r\n|[\r\n\u2028\u2029]", text),
    "str.splitlines": str.splitlines,
    "C strings": lambda text: [line.split("\0")[0] for line in text.split("\n")],
    "no lines": lambda text: [text],
}

# Lines to values


def _whole(reader: Reader) -> Callable[[str], list[Value]]:
    def values(line: str) -> list[Value]:
        try:
            return [reader.whole(line)]
        except ValueError:
            return []

    return values


_RAW: Final = "$serde_json::private::RawValue"


def _not_raw(value: Value) -> Value:
    """What a value is to Rust's `serde_json::Value` with the feature `raw_value`: the text below such a key is parsed.

    Where that cannot be done the whole line is no message to it; then this is the value as it was.
    """
    read = value
    while isinstance(read, Pairs) and len(read) == 1 and read[0][0] == _RAW:
        text = read[0][1]
        if not is_text(text):
            return value
        try:
            read = STRICT.whole(text)
        except ValueError:
            return value
    return read


def _by_serde(line: str) -> list[Value]:
    try:
        value = _not_raw(STRICT.whole(line))
    except ValueError:
        return []
    if isinstance(value, Pairs):
        read = Pairs((name, _not_raw(one) if name == "params" else one) for name, one in value)
    elif _is_array(value):
        return [[_not_raw(one) for one in value]]
    else:
        return [value]
    is_same = all(one is other for (_, one), (_, other) in zip(read, value, strict=True))
    return [value if is_same else read]


TAKERS: Final[dict[str, Callable[[str], list[Value]]]] = {
    "one strict value": _whole(STRICT),
    "one strict value, raw ones parsed": _by_serde,
    "one lenient value": _whole(LENIENT),
    "every value": LENIENT.all,
}

# Keys and words


def _last(pairs: Pairs, key: str) -> Found:
    return next((value for name, value in reversed(pairs) if name == key), MISSING)


def _first(pairs: Pairs, key: str) -> Found:
    return next((value for name, value in pairs if name == key), MISSING)


def fold(text: str) -> str:
    """Letters without case, as Go's `encoding/json` has them: `ſ` is an s, and the Kelvin sign a k."""
    return text.lower().replace("ſ", "s")


_SURROGATE = re.compile("[\ud800-\udfff]")


def _cut_at_nul(text: str) -> str:
    return text.split("\0")[0]


def _by(change: Text, which: Lookup) -> Lookup:
    return lambda pairs, key: which(Pairs((change(name), value) for name, value in pairs), change(key))


def _inherited(pairs: Pairs, key: str) -> Found:
    """JavaScript's `Object.assign({}, JSON.parse(line))`, where `__proto__` becomes the prototype."""
    own = _last(pairs, key)
    prototype = _last(pairs, "__proto__")
    return _inherited(prototype, key) if own is MISSING and isinstance(prototype, Pairs) else own


KEYS: Final[dict[str, tuple[Lookup, Text]]] = {
    "the last key": (_last, str),
    "the first key": (_first, str),
    "any case, the last key": (_by(fold, _last), str),
    "any case, the first key": (_by(fold, _first), str),
    "any case, underscores and dashes": (_by(lambda name: fold(name).replace("_", "").replace("-", ""), _first), str),
    "any case by full folding": (_by(str.casefold, _last), str),
    "prototypes": (_inherited, str),
    "C strings, any case, the last key": (_by(lambda name: fold(_cut_at_nul(name)), _last), _cut_at_nul),
    **{
        kind: (_by(change, which), change)
        for kind, which, change in (
            ("C strings, the first key", _first, _cut_at_nul),
            ("lone surrogates dropped", _last, lambda text: _SURROGATE.sub("", text)),
            ("cut at a lone surrogate", _first, lambda text: _SURROGATE.split(text)[0]),
            ("U+FFFD for a lone surrogate", _last, lambda text: _SURROGATE.sub("\ufffd", text)),
        )
    },
}
"""How each kind looks a key up, and what it makes of a method and a tool's name."""

_REST: Final = ("arguments", "_meta", "task", "requestState", "inputResponses")


def _is_array(value: Found) -> TypeGuard[list[Value]]:
    return isinstance(value, list) and not isinstance(value, Pairs)


def _messages(value: Value) -> Iterator[Pairs]:
    """The objects in a value that is a message, or a batch, or a batch of batches."""
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, Pairs):
            yield one
        elif _is_array(one):
            waiting += one[::-1]


def _reading(message: Pairs, lookup: Lookup, text: Text) -> Reading:
    method, request_id = lookup(message, "method"), lookup(message, "id")
    word = text(method) if is_text(method) else None
    said = "" if isinstance(request_id, Missing) else f"{type(request_id).__name__} {request_id!r}"
    if word != TOOLS_CALL:
        return Reading(word, said)
    params = lookup(message, "params")
    name: Found = MISSING
    rest = ""
    if isinstance(params, Pairs):
        name = lookup(params, "name")
        rest = repr([lookup(params, key) for key in _REST])
    elif _is_array(params):
        name = next(iter(params), MISSING)
    return Reading(word, said, text(name) if is_text(name) else "(none)", rest)


def _values(stream: bytes) -> dict[str, list[Value]]:
    """What stands on the wire, by kind of parser; one kind stands for all those that see just the same lines."""
    lines_by_kind: dict[tuple[str, ...], str] = {}
    for decoder, decode in DECODERS.items():
        text = decode(stream)
        for splitter, split in SPLITTERS.items():
            lines_by_kind.setdefault(tuple(line for line in split(text) if line), f"{decoder}; {splitter}")
    return {
        f"{kind}; {taker}": [value for line in lines for value in take(line)]
        for lines, kind in lines_by_kind.items()
        for taker, take in TAKERS.items()
        if not (kind.endswith("no lines") and taker.startswith("one"))
    }


def readings(stream: bytes) -> dict[str, list[Reading]]:
    """The messages that each kind of parser sees in what it reads from its stdin."""
    found = {}
    known: dict[tuple[int, ...], dict[str, list[Reading]]] = {}  # several kinds often take the same objects off a line
    for kind, values in _values(stream).items():
        same = tuple(map(id, values))
        if same not in known:
            known[same] = {
                keys: [_reading(message, lookup, text) for value in values for message in _messages(value)]
                for keys, (lookup, text) in KEYS.items()
            }
        found.update({f"{kind}; {keys}": readings for keys, readings in known[same].items()})
    return found
