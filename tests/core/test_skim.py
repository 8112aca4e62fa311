import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcpguard.core import frames, skim
from mcpguard.core.audit import args_hash
from mcpguard.core.frames import Frame, Refusal
from tests.core.build import Talk, call_line

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=30,
)
NEAR = st.lists(st.sampled_from([*'[]{},:"0a -.eE1\\n', "null", "true", '"a"', "[[[[", "]]]]", '{"a":', "\u00e9"]), max_size=30)


def strictly(text: str) -> int | None:
    try:
        return frames._value(text, 0)[1]
    except ValueError:
        return None


def skipped(text: str) -> int | None:
    try:
        return skim.skip(text, 0)
    except ValueError:
        return None


@given(VALUES, st.sampled_from([None, 1]), st.booleans())
def test_a_value_ends_where_the_parser_says(value: object, indent: int | None, ascii_only: bool) -> None:
    text = json.dumps(value, indent=indent, ensure_ascii=ascii_only)
    assert skim.skip(text + " ,", 0) == len(text)


@given(NEAR.map("".join))
def test_what_the_parser_refuses_is_refused(text: str) -> None:
    if not text[:1].isspace():
        assert skipped(text) == strictly(text)


@given(VALUES, st.integers(0, 200), st.sampled_from(list('[]{},:"0a \\')))
def test_a_value_with_a_character_changed_is_judged_as_the_parser_does(value: object, at: int, char: str) -> None:
    text = json.dumps([value])
    at %= len(text)
    text = text[:at] + char + text[at + 1 :]
    if not text[:1].isspace():
        assert skipped(text) == strictly(text)


HEAVY = "[" + "[]," * skim.HEAVY_PARTS + "0]"
LINES = [
    b'{"id":1,"method":"tools/call","params":{"name":"t","_meta":{"a":1,"traceparent":"x"},"arguments":%s}}',
    b'{"id":1,"method":"tools/call","params":{"name":"t","_meta":{},"arguments":%s}}',
    b'{"id":1,"method":"tools/call","params":{"name":"t","_meta":%s}}',
    b'{"id":1,"method":"tools/call","params":{"name":"t","_meta":{"a":%s}}}',
    b'{"id":1,"method":"tools/call","params":{"name":"t","_meta":{"a":%s]}}',
    b'{"id":1,"method":"tools/call","params":{"name":"t","name":"u","arguments":%s}}',
    b'{"id":1,"method":"tools/call","params":{"Name":"t","arguments":%s}}',
    b'{"id":1,"method":"tools/call","params":{},"x":%s}',
    b'{"id":1,"method":"tools/call","params":%s}',
    b'{"id":%s,"method":"x"}',
    b'{"method":"tools/call","params":{"name":"t","arguments":%s}}',
    b'{"id":1,"result":%s}',
    b'{"id":1,"result":%s} x',
    b'{"id":1,"result":%s]',
    b'{"id":1,"result":%s,}',
    b'{"id":1,"params":{"a":%s],"method":"x"}',
    b'[{"id":1,"method":"x"},{"id":2,"method":"x","params":{"name":%s}},3]',
    b'[{"id":1,"method":"x","params":%s]]',
    b"%s",
    b"[[],%s]",
    b'"%%s" %s',
]


@pytest.mark.parametrize("line", LINES)
def test_a_heavy_line_is_judged_as_it_would_be_if_it_were_light(line: bytes) -> None:
    heavy, light = line % HEAVY.encode(), line % b"[0]"
    assert skim.is_heavy(heavy)
    assert not skim.is_heavy(light)
    for one, other in zip(frames.parse(heavy), frames.parse(light), strict=False):
        assert type(one) is type(other)
        if isinstance(one, Frame) and isinstance(other, Frame):
            assert (one.method, one.id, one.is_call) == (other.method, other.id, other.is_call)
            assert one.raw == heavy or one.raw in heavy
        if isinstance(one, Refusal) and isinstance(other, Refusal):
            assert (one.code == other.code, one.id, one.answered) == (True, other.id, other.answered)


def test_of_a_heavy_line_only_what_the_guard_looks_at_is_built() -> None:
    (frame,) = frames.parse(LINES[0] % HEAVY.encode())
    assert isinstance(frame, Frame)
    assert frame.params == {"name": "t", "_meta": {"traceparent": "x"}, "arguments": skim.Unbuilt(HEAVY)}


def test_heavy_arguments_are_hashed_as_they_are_written() -> None:
    assert args_hash(skim.Unbuilt("[1]"), b"k") == args_hash([1], b"k")


def test_heavy_arguments_are_kept_in_full_as_text() -> None:
    talk = Talk(arguments="full")
    talk.client(call_line("t", 1, arguments=json.loads(HEAVY)))
    (record,) = talk.records
    assert json.loads(str(record["arguments"])) == json.loads(HEAVY)


def test_a_heavy_object_without_members_and_a_heavy_batch_of_objects_are_read() -> None:
    assert skim.skim("{ }", 0, frames._value, frames._object, most=2) == ({}, 3)
    assert skim.skim("[ ]", 0, frames._value, frames._object, most=2) == ([], 3)
    assert skim.skim('[{"id":1},2]', 0, frames._value, frames._object, most=2) == ([{"id": 1}, None], 12)
    assert skim.skim("[{},{},{}]", 0, frames._value, frames._object, most=2) == ([{}, {}, None], 10)


@pytest.mark.parametrize("text", ['{"a":1]', "[1}", "[{},{}}", '{"a":{]', '{"a":[[[[1]]]}', "[[[[1}]]]", '{"a" 1}'])
def test_a_bracket_of_the_other_kind_does_not_close(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        skim.skim(text, 0, frames._value, frames._object, most=9)
