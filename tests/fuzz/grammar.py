"""Streams that are nearly what a client writes.

Each message starts as one that a client could send; then some of it is written another way. What is left is mostly valid, so
that what is wrong with it, if anything, is wrong in one or two places only. It is drawn from a `Random`: a strategy for each
space and letter takes ten times as long as the check.
"""

import json
from collections.abc import Callable
from random import Random

from tests.fuzz.attacks import CALL, COUNTED, EXPOSED, HIDDEN, OPEN

# fmt: off
TOOLS = ("open", "closed", "ask", "outil-é", "🔧", "CLOSED", "closed ", "")
METHODS = ("tools/call",) * 6 + (
    "ping", "initialize", "notifications/cancelled", "tools/list", "tasks/get", "Tools/Call", "tools/call ", "",
)
IDS = ("1", "2", '"a"', '"1"', "0", "-1", "-0", "9007199254740993", "1180591620717411303424", r'"\u0061"', '""', '"é"')
ODD_IDS = (
    "null", "true", "false", "1.5", "1.0", "1e3", "[]", "[1]", "{}", r'"\u0000"', r'"\ud800"', "7" * 4301, "-" + "7" * 5000,
)
SPACES = ("",) * 8 + (" ", "\t", "\r", "  \r", "\r\r")
ODD_SPACES = (
    "\n", "\r\n", "\x0b", "\x0c", "\x1c", "\x1e", "\x85", "\xa0", "\u2028", "\u2029", "\ufeff", "\0", "//\r", "/**/",
)
SCALARS = (
    "null", "true", "0", "-0", "1E+2", "1e400", "0.1", '"x"', '""', '"\u2028"', '"\u0085\u2029"', r'"\ud800"', r'"\u0000"',
)
ODD_SCALARS = (
    "NaN", "-Infinity", "01", "+1", "1.", ".5", "'x'", '"\x01"', '"\t"', r'"\x"', r'"\u12"', "undefined", "", "tru", "1" * 4400,
)
BYTES = (
    b"\xff", b"\xc0\xaf", b"\xc1\xad", b"\xe0\x80\xaf", b"\xed\xa0\x80", b"\xe2\x80", b"\xf5\x80\x80\x80", b"\x80",
    b"\xef\xbb\xbf", b"\0",
)
KEYS = (
    "jsonrpc", "id", "method", "params", "result", "error", "name", "arguments", "_meta", "task", "requestState",
    "inputResponses", "__proto__", "$serde_json::private::RawValue", "constructor", "x", "uri",
)
# fmt: on
ATTACKS = (*HIDDEN.values(), *(line.encode() for line in (EXPOSED | COUNTED).values()))


class Draw(Random):
    def seldom(self, times: int = 10) -> bool:
        return self.randrange(times) == 0

    def often(self, times: int = 10) -> bool:
        return self.randrange(times) > 0


def key(draw: Draw, name: str) -> str:
    """A key as JSON text: mostly as it is, sometimes as another that some parser takes for it."""
    if draw.often(20):
        return json.dumps(name)
    at = draw.randrange(len(name)) if name else 0
    changes: tuple[Callable[[], str], ...] = (
        lambda: json.dumps(name.upper()),
        lambda: json.dumps(name[:at] + name[at:].swapcase()),
        lambda: json.dumps(name.replace("s", "ſ").replace("k", "\u212a"), ensure_ascii=False),
        lambda: f'"{name[:at]}\\u{ord(name[at]) & 0xFFFF:04x}{name[at + 1 :]}"' if name else '""',
        lambda: escaped(name),
        lambda: json.dumps(name)[:-1] + r'\u0000"',
        lambda: json.dumps(name)[:-1] + r'\u0000x"',
        lambda: f'"{name[:at]}\\ud800{name[at:]}"',
        lambda: f'"{name[:at]}\\udfff{name[at:]}"',
        lambda: json.dumps(name + " "),
        lambda: json.dumps("\ufeff" + name, ensure_ascii=False),
        lambda: json.dumps(name[:at] + "\u2028" + name[at:], ensure_ascii=False),
        lambda: json.dumps(name[:at] + "\u200b" + name[at:], ensure_ascii=False),
        lambda: name,
    )
    return draw.choice(changes)()


def escaped(plain: str) -> str:
    """A string as JSON text of escapes only."""
    units = plain.encode("utf-16-be", "surrogatepass").hex()
    return '"' + "".join(f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4)) + '"'


def text(draw: Draw, plain: str) -> str:
    """A string as JSON text, sometimes spelled otherwise, and sometimes another that some parser takes for it."""
    if draw.often(8):
        return json.dumps(plain, ensure_ascii=draw.seldom(2))
    return key(draw, plain) if draw.seldom(2) else escaped(plain)


def value(draw: Draw, depth: int = 2) -> str:
    """Any value, in which a call may hide."""
    kind = draw.randrange(10)
    if kind < 4 or depth == 0:
        return draw.choice(ODD_SCALARS if draw.seldom(25) else SCALARS)
    if kind == 4:
        return draw.choice((CALL, OPEN, f"\r{CALL}\r", json.dumps(CALL), f"[{CALL}]"))
    if kind == 5:
        deep = draw.choice((2, 3, 4, 300, 505, 508, 509, 510, 511, 512, 513, 600))
        return "[" * deep + "]" * deep
    if kind < 8:
        return between(draw, "[]", [value(draw, depth - 1) for _ in range(draw.randrange(4))])
    return obj(draw, [(draw.choice(KEYS), value(draw, depth - 1)) for _ in range(draw.randrange(4))])


def space(draw: Draw) -> str:
    return draw.choice(ODD_SPACES if draw.seldom(400) else SPACES)


def between(draw: Draw, brackets: str, members: list[str]) -> str:
    """Members between brackets, with spaces."""
    inside = ",".join(f"{space(draw)}{member}{space(draw)}" for member in members)
    return brackets[0] + inside + ("," if draw.seldom(80) else "") + brackets[1]


def obj(draw: Draw, members: list[tuple[str, str]]) -> str:
    """An object with these members, given as name and JSON text; perhaps in another order, perhaps with one twice."""
    members = list(members)
    if members and draw.seldom(10):
        members.append((draw.choice(members)[0], value(draw, 1)))
    if draw.seldom(4):
        draw.shuffle(members)
    written = [f"{key(draw, name)}{space(draw)}:{space(draw)}{content}" for name, content in members]
    return between(draw, "{}", written)


def call_params(draw: Draw) -> str:
    if draw.seldom(25):
        return value(draw)
    members = [("name", value(draw, 1) if draw.seldom(25) else text(draw, draw.choice(TOOLS)))]
    if draw.seldom(2):
        members.append(("arguments", value(draw)))
    others = ("_meta", "task", "requestState", "inputResponses", "__proto__", "x")
    members += [(name, value(draw, 1)) for name in others if draw.seldom(8)]
    return obj(draw, members)


def message(draw: Draw) -> str:
    """A request, a notification or a response; or what is nearly one."""
    method = draw.choice(METHODS)
    members = [("jsonrpc", '"2.0"')]
    if draw.often(8):
        members.append(("id", draw.choice(ODD_IDS if draw.seldom(8) else IDS)))
    if draw.often(8):
        members.append(("method", value(draw, 1) if draw.seldom(25) else text(draw, method)))
        members.append(("params", call_params(draw) if method.lower().startswith("tools/call") else value(draw)))
    others = ("result", "error", "__proto__", "message", "x")
    members += [(name, value(draw, 1)) for name in others if draw.seldom(10)]
    return obj(draw, members)


def frame(draw: Draw) -> bytes:
    """What a client means as one line; it may be more, or less."""
    kind = draw.randrange(20)
    if kind < 12:
        line = message(draw)
    elif kind < 15:
        line = between(draw, "[]", [message(draw) for _ in range(draw.randrange(4))])
    elif kind == 15:
        line = between(draw, "[]", [message(draw), value(draw, 1), between(draw, "[]", [message(draw)])])
    elif kind == 16:
        line = message(draw) + space(draw) + draw.choice(("", ",", ";", "\0")) + message(draw)
    elif kind == 17:
        line = draw.choice(("\ufeff", *ODD_SPACES)) + message(draw)
    elif kind == 18:
        return draw.choice(ATTACKS)
    else:
        line = value(draw)
    data = f"{space(draw)}{line}{space(draw)}".encode(errors="surrogatepass")
    if draw.seldom(15):
        at = draw.randrange(len(data) + 1)
        data = data[:at] + draw.choice(BYTES) + data[at:]
    return data[: draw.randrange(len(data) + 1)] if draw.seldom(25) else data


def stream(draw: Draw) -> bytes:
    """What a client writes, to its end."""
    ends = (b"\n", b"\n", b"\n", b"\n", b"\n", b"\r\n", b"\n\n", b"\r", b" \t\r\n", b"")
    return b"".join(frame(draw) + draw.choice(ends) for _ in range(draw.randrange(1, 5)))
