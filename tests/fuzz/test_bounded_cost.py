"""What a line costs grows with its length and no faster, whatever it holds."""

import sys
import tracemalloc
from collections.abc import Callable
from types import FrameType

import pytest

from mcpguard.core.frames import MAX_FRAME_BYTES
from tests.fuzz.oracle import Wire

BYTES_FOR_EACH = 60
"""Memory for each byte of a line. A list in a list is two bytes of JSON, and 88 in Python."""


def _call(arguments: bytes) -> bytes:
    return b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"t","arguments":%s}}' % arguments


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
    "too deep lists": lambda size: _times(b"[", size),
    "closing brackets": lambda size: _times(b"]", size),
    "quotation marks after brackets": lambda size: b"[" * 513 + b'"' + _times(b'\\"', size),
    "backslashes after brackets": lambda size: b"[" * 513 + b'"' + _times(b"\\", size),
    "text after brackets": lambda size: b"[" * 513 + _times(b'"a",', size),
    "text that does not end": lambda size: b'{"a":"' + _times(b"x", size),
    "a batch of nothing": lambda size: b"[" + _times(b"0,", size) + b"0]",
    "a batch of empty objects": lambda size: b"[" + _times(b"{},", size) + b"{}]",
    "a batch of requests": lambda size: b"[" + _times(b'{"id":1,"method":"x"},', size) + b"{}]",
    "a batch of long calls": lambda size: b"[" + _call(b'"' + _times(b"x", size // 2) + b'"') * 2 + b"]",
}


def _write(data: bytes) -> None:
    wire = Wire()
    for at in range(0, len(data), 1 << 16):
        wire.write(data[at : at + (1 << 16)])
    wire.end()


def _steps(data: bytes) -> int:
    """How many functions of Python's and of C's are called for it."""
    steps = 0

    def count(_frame: FrameType, event: str, _arg: object) -> None:
        nonlocal steps
        steps += event in {"call", "c_call"}

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        _write(data)
    finally:
        sys.setprofile(before)
    return steps


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_memory_is_bounded_by_a_multiple_of_the_line(shape: Callable[[int], bytes]) -> None:
    line = shape(1 << 18)
    tracemalloc.start()
    try:
        _write(line)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak <= BYTES_FOR_EACH * len(line)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_steps_grow_no_faster_than_the_line(shape: Callable[[int], bytes]) -> None:
    assert _steps(shape(1 << 16)) <= 4.5 * _steps(shape(1 << 14)) + 200


def test_a_line_is_read_no_further_than_where_it_is_too_deep() -> None:
    assert _steps(b"[" * (1 << 16)) == _steps(b"[" * (1 << 10))


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_a_long_line_comes_to_an_end(shape: Callable[[int], bytes]) -> None:
    _write(shape(1 << 20))  # quadratic work would take hours


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
