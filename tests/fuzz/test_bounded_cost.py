"""What a line costs grows with its length and no faster, whatever it holds."""

import tracemalloc
from collections.abc import Callable

import pytest

from mcpguard.wire.frames import MAX_FRAME_BYTES, is_heavy
from tests.build import steps
from tests.fuzz.oracle import Wire

BYTES_FOR_EACH = 20
"""Memory for each byte of a long line. A list in a list is two bytes of JSON, and 88 in Python."""

STEPS_FOR_EACH = 4
"""Functions that are called for each byte of a long line, which may be a bracket."""


def _call(arguments: bytes, request_id: int = 1) -> bytes:
    return b'{"jsonrpc":"2.0","id":%d,"method":"tools/call","params":{"name":"t","arguments":%s}}' % (request_id, arguments)


def _calls(arguments: bytes, count: int) -> bytes:
    """A batch of calls. Each has an id of its own: the others would be refused."""
    return b"[" + b",".join(_call(arguments, at) for at in range(count)) + b"]"


def _times(part: bytes, size: int) -> bytes:
    return part * (size // len(part))


def _keys(size: int) -> bytes:
    return b",".join(b'"k%07d":0' % at for at in range(size // 13))


SHAPES: dict[str, Callable[[int], bytes]] = {
    "empty lists": lambda size: _call(b"[" + _times(b"[],", size) + b"0]"),
    "empty objects": lambda size: _call(b"[" + _times(b"{},", size) + b"0]"),
    "objects of one": lambda size: _call(b"[" + _times(b'{"a":0},', size) + b"0]"),
    "one object of many": lambda size: _call(b"{" + _keys(size) + b"}"),
    "many keys in the envelope": lambda size: b'{"id":1,"method":"x",' + _keys(size) + b"}",
    "many keys in params": lambda size: b'{"id":1,"method":"x","params":{' + _keys(size) + b"}}",
    "many keys in _meta": lambda size: b'{"id":1,"method":"tools/call","params":{"name":"t","_meta":{' + _keys(size) + b"}}}",
    "many keys with escapes": lambda size: b'{"id":1,"method":"x",' + _keys(size).replace(b"k", b"\\u006b") + b"}",
    "many keys beyond the BMP": lambda size: b'{"id":1,"method":"x",' + _keys(size).replace(b"k0", "😀_".encode()) + b"}",
    "many keys of many letters": lambda size: b'{"id":1,"method":"x",' + _keys(size // 8).replace(b"k", b"k" * 92) + b"}",
    "many keys with values within": lambda size: b'{"id":1,"method":"x",' + _keys(size).replace(b":0", b':[{"k":{}}]') + b"}",
    "many keys with deep values": lambda size: b'{"id":1,"method":"x",' + _keys(size).replace(b":0", b":[[[[[[]]]]]]") + b"}",
    "one key again and again": lambda size: b'{"id":1,"method":"x",' + _times(b'"a":0,', size) + b'"a":0}',
    "digits": lambda size: _call(b"[" + _times(b"0,", size) + b"0]"),
    "short text": lambda size: _call(b"[" + _times('"éx",'.encode(), size) + b"0]"),
    "one long number": lambda size: _call(_times(b"9", size)),
    "long numbers": lambda size: _call(b"[" + _times(b"9" * 5000 + b",", size) + b"0]"),
    "a long id": lambda size: b'{"method":"x","id":' + _times(b"9", size) + b"}",
    "a long method": lambda size: b'{"id":1,"method":"' + _times(b"x", size) + b'"}',
    "a long tool": lambda size: b'{"id":1,"method":"tools/call","params":{"name":"' + _times(b"x", size) + b'"}}',
    "brackets in text": lambda size: _call(b'"' + _times(b"[{", size) + b'"'),
    "escapes": lambda size: _call(b'"' + _times(b"\\n", size) + b'"'),
    "characters beyond the BMP": lambda size: _call(b'"' + _times(b"x", size) + "😀".encode() + b'"'),
    "line separators": lambda size: _call(b'"' + _times("\u2028".encode(), size) + b'"'),
    "carriage returns": lambda size: _call(_times(b"\r", size) + b"0"),
    "spaces": lambda size: _times(b" ", size) + _call(b"0"),
    "deep lists": lambda size: _call(b"[" + _times(b"[" * 500 + b"]" * 500 + b",", size) + b"0]"),
    "deep objects": lambda size: _call(b"[" + _times(b'{"":' * 500 + b"0" + b"}" * 500 + b",", size) + b"0]"),
    "deep lists of lists": lambda size: _call(b"[" + _times(b"[0," * 500 + b"0" + b",0]" * 500 + b",", size) + b"0]"),
    "lists of four lists": lambda size: _call(b"[" + _times(b"[[[[]]]],", size) + b"0]"),
    "deep lists and objects in params": lambda size: (
        b'{"id":1,"method":"x","params":{"a":[' + _times(b'[{"":' * 250 + b"0" + b"}]" * 250 + b",", size) + b"0]}}"
    ),
    "lone surrogates": lambda size: _call(b'"' + _times(b"\\ud800", size) + b'"'),
    "too deep lists": lambda size: _times(b"[", size),
    "closing brackets": lambda size: _times(b"]", size),
    "quotation marks after brackets": lambda size: b"[" * 513 + b'"' + _times(b'\\"', size),
    "backslashes after brackets": lambda size: b"[" * 513 + b'"' + _times(b"\\", size),
    "text after brackets": lambda size: b"[" * 513 + _times(b'"a",', size),
    "text that does not end": lambda size: b'{"a":"' + _times(b"x", size),
    "a batch of nothing": lambda size: b"[" + _times(b"0,", size) + b"0]",
    "a batch of empty objects": lambda size: b"[" + _times(b"{},", size) + b"{}]",
    "a batch of requests": lambda size: b"[" + _times(b'{"id":1,"method":"x"},', size) + b"{}]",
    "a batch of calls": lambda size: _calls(b"[" + _times(b"[[],{}],", size // 1024) + b"0]", 1024),
    "a batch of deep calls": lambda size: _calls(b"[" * 400 + b"]" * 400, size // 890),
    "a batch of many keys": lambda size: b"[" + b",".join([b'{"method":"x",' + _keys(size // 1024) + b"}"] * 1024) + b"]",
    "a batch of long calls": lambda size: _calls(b'"' + _times(b"x", size // 2) + b'"', 2),
}


def _write(data: bytes) -> None:
    wire = Wire()
    for at in range(0, len(data), 1 << 16):
        wire.write(data[at : at + (1 << 16)])
    wire.end()


def _steps(data: bytes) -> int:
    """How many functions of Python's and of C's are called for it."""
    return steps(lambda: _write(data))


@pytest.mark.parametrize("shape", SHAPES)
def test_memory_is_bounded_by_a_multiple_of_the_line(shape: str) -> None:
    line = SHAPES[shape](1 << 17)  # tracing takes ten times as long as the work
    if not is_heavy(line):
        line = SHAPES[shape](1 << 20)  # of a short line that is not heavy all is built
    tracemalloc.start()
    try:
        _write(line)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak <= BYTES_FOR_EACH * len(line)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_a_long_line_takes_few_steps_whatever_it_holds(shape: Callable[[int], bytes]) -> None:
    line = shape(1 << 18)  # quadratic work would take hours
    assert _steps(line) <= STEPS_FOR_EACH * len(line)


@pytest.mark.parametrize(("few", "many"), [(1_000, 45_000), (51_000, 65_000)])  # few enough for all to be built, and too many
def test_a_line_is_read_no_further_than_where_it_is_too_deep(few: int, many: int) -> None:
    _write(b"[" * few)  # what is done once in a process is not counted
    assert _steps(b"[" * few) == _steps(b"[" * many)


def test_a_line_that_is_too_long_is_not_kept() -> None:
    wire = Wire()
    size = 1 << 16
    tracemalloc.start()
    try:
        for _ in range(4 * MAX_FRAME_BYTES // size):
            wire.write(b"[" * size)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    wire.write(b"\n")
    assert peak <= 1.1 * MAX_FRAME_BYTES
    assert (len(wire.to_server), len(wire.to_client)) == (0, 1)
