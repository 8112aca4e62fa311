"""The hash of arguments."""

import hashlib
import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from mcpguard.wire.arguments import NONE, Unbuilt, args_hash
from mcpguard.wire.frames import MAX_DEPTH, Frame, parse


def hashed(text: str, key: bytes = b"k") -> bytes:
    return args_hash(json.loads(text).get("arguments", NONE), key)


def of_value(value: object) -> bytes:
    return args_hash(value, b"k")


def test_other_arguments_or_another_key_give_another_hash() -> None:
    values: list[Any] = [None, {}, {"a": 1}, {"a": "1"}, {"a": True}, {"a": None}, {"a": [1]}, {"a": {"b": 1}}, "\ud800"]
    assert len({of_value(value) for value in values}) == len(values)
    assert hashed("{}") != hashed("{}", b"l")


def test_arguments_are_equal_if_they_are_equal_as_json() -> None:
    equal = ['{"arguments":{"a":1,"b":[2.0,{"c":100}]}}', '{"arguments":{"b":[2,{"c":1e2}],"a":1.0},"_meta":{"x":1}}']
    assert len({hashed(text) for text in equal}) == 1
    assert hashed("{}") == hashed('{"arguments":{}}') != hashed('{"arguments":null}')
    different = ["1", "1.5", "true", '"1"', "null", "[1]", '{"a":1}', '".0"', '"e+"', "[1,2]", "[1.5,2.0]"]
    assert len({hashed('{"arguments":{"a":' + value + "}}") for value in different}) == len(different)
    assert hashed(equal[0], b"l") != hashed(equal[0])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats(allow_nan=False) | st.text('1.0e+"\\é', max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text('1.0e+"\\', max_size=4), inner, max_size=3),
)


def with_integers(value: Any) -> Any:
    """The value in which floats that are whole numbers are integers."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, list):
        return [with_integers(one) for one in value]
    return {key: with_integers(one) for key, one in value.items()} if isinstance(value, dict) else value


@given(JSON)
def test_whole_numbers_are_integers_and_nothing_else_changes(value: object) -> None:
    text = json.dumps(with_integers(value), separators=(",", ":"), sort_keys=True).encode()
    assert of_value(value) == hashlib.blake2b(text, key=b"k", digest_size=12).digest()


def test_arguments_as_deep_as_a_line_may_be_have_a_hash() -> None:
    for opened, closed in ("[", "]"), ('{"a":', "}"):
        deep = [opened * (MAX_DEPTH - 2) + number + closed * (MAX_DEPTH - 2) for number in ("1", "1.0")]
        lines = [f'{{"id":1,"method":"tools/call","params":{{"name":"x","arguments":{value}}}}}'.encode() for value in deep]
        frames = [frame for line in lines for frame in parse(line) if isinstance(frame, Frame)]
        first, second = [of_value(frame.params["arguments"]) for frame in frames if isinstance(frame.params, dict)]
        assert first == second


def test_long_arguments_and_those_of_heavy_lines_are_known_by_their_text() -> None:
    long = json.dumps({"arguments": {"a": 1, "b": "x" * 70_000}})
    assert hashed(long) == hashed(json.dumps(json.loads(long)))
    assert hashed(long) != hashed(long.replace('"a": 1', '"a": 1.0'))
    assert of_value(Unbuilt('{"a":1}')) == of_value(Unbuilt('{"a":1}')) != of_value(Unbuilt('{"a": 1}'))
