"""Whether a guard let through what it should not have, or kept silent where it owed an answer.

`check` writes a stream to a guard as a client would, takes exactly what reaches the server, and asks every kind of parser
in `far_side` what it would run. The other rules of the wire are checked beside it, by code that shares nothing with the
code under test.
"""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from mcpguard.session import audit
from mcpguard.stores.memory import MemoryStore
from mcpguard.text.digest import cut
from mcpguard.wire.answers import AnswerLines
from mcpguard.wire.frames import MAX_FRAME_BYTES, LineSplitter, Refusal, read
from tests.build import Session
from tests.end_to_end.host import rule
from tests.fuzz.far_side import Reading, readings
from tests.fuzz.json_text import STRICT, Number, Pairs, Value, is_text

POLICY: Final = rule("1000000/1d", tool="*") + rule("deny", tool="closed")

PLAIN: Final = "UTF-8; LF; one strict value; the last key"

ODD_LINE_ENDS: Final = {"\r": " ", "\u0085": "\\u0085", "\u2028": "\\u2028", "\u2029": "\\u2029"}
"""What is written in other bytes, and how."""

MAX_BATCH: Final = 1024
INVALID: Final = frozenset({-32600, -32602})
DENIED: Final = 403


class Said(NamedTuple):
    id: object
    code: int


class Member(NamedTuple):
    """What the client wrote, as one who reads strictly has it: a message, or what is none."""

    value: Pairs | None  # None for what cannot be a message
    code: int = 0  # then, the code that says so
    forwarded: bytes = b""  # the bytes that may reach the server


class Wire(Session):
    """A guard between two streams."""

    def __init__(self, *, max_frame_bytes: int = MAX_FRAME_BYTES, arguments: str = "hash") -> None:
        super().__init__(MemoryStore(clock=lambda: 10**12, wall=lambda: 10**15), POLICY, arguments=arguments)
        self.splitter = LineSplitter(max_frame_bytes)
        self.answers = AnswerLines()
        self.to_server: list[bytes] = []
        self.to_client: list[bytes] = []

    def write(self, chunk: bytes) -> None:
        self._take(self.splitter.feed(chunk))

    def end(self) -> None:
        self._take(self.splitter.finish())

    def answer(self, data: bytes) -> None:
        self.machine.server_wrote(self.answers.feed(data), 0)

    def _take(self, lines: Sequence[bytes | Refusal]) -> None:
        """What the relay does with one read."""
        asked = self.machine.judge(read(lines), 0)
        self.write_rows()
        while asked:
            asked = self.machine.decided(self.store.decide(asked, self.journal))
        to_server, to_client = self.machine.output()
        self.to_server += to_server.splitlines(keepends=True)
        self.to_client += to_client.splitlines(keepends=True)

    @property
    def charged(self) -> Counter[str]:
        """How often the counters in the store say that each tool was called."""
        used: Counter[str] = Counter()
        for held in self.store.counters():
            used[json.loads(held.label)[1]["tool"]] += held.used
        return used


def check(
    stream: bytes, *, chunk_bytes: int = 1 << 16, max_frame_bytes: int = MAX_FRAME_BYTES, arguments: str = "hash"
) -> Wire:
    """Write `stream` to a guard, in chunks, and check everything that comes out of it."""
    wire = Wire(max_frame_bytes=max_frame_bytes, arguments=arguments)
    for start in range(0, len(stream), chunk_bytes):
        wire.write(stream[start : start + chunk_bytes])
    wire.end()
    check_far_side(wire)
    invalid = _check_answers(stream, max_frame_bytes, wire)
    assert wire.machine.tally["invalid", ""] == invalid, "what was refused and what the audit says was refused differ"
    for entry in wire.store.entries():
        audit.line(entry.record)
    return wire


def check_far_side(wire: Wire) -> None:
    """Every kind of parser sees the messages that the guard judged, and runs the calls that it charged."""
    for line in wire.to_server:
        _check_forwarded(line)
    seen = readings(b"".join(wire.to_server))
    plain = seen[PLAIN]
    for kind, found in seen.items():
        assert found == plain, f"a parser ({kind}) sees {_first_difference(found, plain)}"
    calls = Counter(cut(reading.tool) for reading in plain if reading.tool is not None)  # as counters name them
    assert "closed" not in calls, "a denied call arrived"
    assert calls == wire.charged, f"the server runs {dict(calls)}, charged is {dict(wire.charged)}"


def _first_difference(found: list[Reading], plain: list[Reading]) -> str:
    return next(
        (f"{one} where the guard saw {other}" for one, other in zip(found, plain, strict=False) if one != other),
        f"{len(found)} messages where the guard saw {len(plain)}",
    )


def _check_forwarded(line: bytes) -> None:
    assert line.endswith(b"\n"), "a line without its end"
    text = line[:-1].decode()
    assert not any(mark in text for mark in ("\n", *ODD_LINE_ENDS)), "a line that somebody cuts in two"
    message = STRICT.whole(text)
    assert isinstance(message, Pairs), "not a message"
    one = dict(message)
    params = one.get("params")
    for level in (message, params if isinstance(params, Pairs) else Pairs()):
        assert len({key.casefold() for key, _ in level}) == len(level), "a key that comes twice"
    if one.get("method") is not None:
        assert is_text(one["method"]), "a method that is not text"
        assert "id" not in one or _id(one["id"]) is not None, "a request whose id is neither text nor an integer"
        assert "id" in one or one["method"] != "tools/call", "a call without an id"
    elif "id" in one:
        assert "result" in one or "error" in one, "an id that somebody waits for, and nothing that can be answered"


def _id(value: Value) -> str | int | None:
    """An id that a request can have: text, an integer, or the digits of one that is too long for Python."""
    if not isinstance(value, Number):
        return value if isinstance(value, str) else None
    if not value.removeprefix("-").isdecimal():
        return None
    return int(value) if len(value) < 4000 else str(value)


def expected(stream: bytes, max_frame_bytes: int) -> Iterator[Member]:
    """What the client wrote, message by message; a batch is taken apart."""
    for line in stream.split(b"\n"):
        if not line.strip(b" \t\r"):
            if len(line) > max_frame_bytes:
                yield Member(None, -32700)
            continue
        yield from _in_line(line) if len(line) <= max_frame_bytes else [Member(None, -32700)]


def _in_line(line: bytes) -> Iterator[Member]:
    try:
        text = line.decode()
        value = STRICT.whole(text)
    except ValueError:
        yield Member(None, -32700)
        return
    if isinstance(value, Pairs):
        yield Member(value, forwarded=honest(text))
    elif not isinstance(value, list) or not 0 < len(value) <= MAX_BATCH:
        yield Member(None, -32600)
    else:
        for member, raw in STRICT.members(text):
            yield Member(member, forwarded=honest(raw)) if isinstance(member, Pairs) else Member(None, -32600)


def honest(text: str) -> bytes:
    """The line that may reach the server in place of this one."""
    for mark, instead in ODD_LINE_ENDS.items():
        text = text.replace(mark, instead)
    return text.encode() + b"\n"


def _check_answers(stream: bytes, max_frame_bytes: int, wire: Wire) -> int:
    """Forwarded byte for byte, or answered once; in order. How many were refused as invalid."""
    to_server, to_client = list(reversed(wire.to_server)), [_said(line) for line in reversed(wire.to_client)]
    refused = 0
    for member in expected(stream, max_frame_bytes):
        if member.value is None:
            assert to_client, "a line that is not understood is not answered"
            assert to_client.pop() == Said(None, member.code), "a line that is not understood has the wrong answer"
            refused += 1
        elif to_server and to_server[-1] == member.forwarded:
            to_server.pop()
        else:
            refused += _refused(member.value, to_client)
    assert not to_server, f"nobody wrote {to_server[-1][:200]!r}"
    assert not to_client, f"an answer to nothing: {to_client[-1]}"
    return refused


def _refused(message: Pairs, to_client: list[Said]) -> bool:
    """Whether this message, which was not forwarded, was refused as invalid rather than denied."""
    last = dict(message)
    is_answer = last.get("method") is None and ("result" in last or "error" in last)
    if is_answer or "id" not in last:
        return True
    assert to_client, "a request that is refused is not answered"
    said = to_client.pop()
    told = _id(last["id"]) if sum(key == "id" for key, _ in message) == 1 else None
    assert said.id == told, f"the answer to a request with the id {told!r} has the id {said.id!r}"
    assert said.code in INVALID | {DENIED}, f"a request is refused with {said.code}"
    return said.code != DENIED


def _said(line: bytes) -> Said:
    """An answer of the guard's own, which is one line that every client can read."""
    assert line.endswith(b"\n"), "an answer without its end"
    assert line[:-1].isascii(), "an answer that somebody cuts in two"
    answer = STRICT.whole(line[:-1].decode())
    assert isinstance(answer, Pairs)
    assert [key for key, _ in answer] == ["jsonrpc", "id", "error"]
    error = answer[2][1]
    assert isinstance(error, Pairs)
    code = error[0][1]
    assert isinstance(code, Number)
    return Said(_id(answer[1][1]), int(code))
