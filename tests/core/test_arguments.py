"""The hash of arguments."""

import hashlib
import json
from typing import Any

from mcpguard.core.arguments import args_hash, counted_hash
from mcpguard.core.jsonrpc.heavy import Unbuilt


def test_equal_arguments_have_the_same_hash_in_any_order_and_spelling() -> None:
    one = json.loads('{"a":1,"b":{"c":"\\u00e9","d":[1,2]}}')
    other = json.loads('{"b":{"d":[1,2],"c":"é"},"a":1}')
    assert args_hash(one, b"k") == args_hash(other, b"k")
    assert args_hash(one, b"k") == hashlib.blake2b(b'{"a":1,"b":{"c":"\\u00e9","d":[1,2]}}', key=b"k", digest_size=12).digest()


def test_other_arguments_or_another_key_give_another_hash() -> None:
    values: list[Any] = [None, {}, {"a": 1}, {"a": "1"}, {"a": True}, {"a": None}, {"a": [1]}, {"a": {"b": 1}}, "\ud800"]
    assert len({args_hash(value, b"k") for value in values}) == len(values)
    assert args_hash({}, b"k") != args_hash({}, b"l")


def hashed(text: str, key: bytes = b"k") -> str:
    return counted_hash(json.loads(text), key)


def test_arguments_are_counted_as_equal_if_they_are_equal_as_json() -> None:
    equal = ['{"arguments":{"a":1,"b":[2.0,{"c":100}]}}', '{"arguments":{"b":[2,{"c":1e2}],"a":1.0},"_meta":{"x":1}}']
    assert len({hashed(text) for text in equal}) == 1
    assert hashed("{}") == hashed('{"arguments":{}}') != hashed('{"arguments":null}')
    different = ["1", "1.5", "true", '"1"', "null", "[1]", '{"a":1}', '".0"', '"e+"', "[1,2]", "[1.5,2.0]"]
    assert len({hashed('{"arguments":{"a":' + value + "}}") for value in different}) == len(different)
    assert hashed(equal[0], b"l") != hashed(equal[0])


def test_long_arguments_and_those_of_heavy_lines_are_counted_by_their_text() -> None:
    long = json.dumps({"arguments": {"a": 1, "b": "x" * 70_000}})
    assert hashed(long) == hashed(json.dumps(json.loads(long)))
    assert hashed(long) != hashed(long.replace('"a": 1', '"a": 1.0'))
    heavy: dict[str, object] = {"arguments": Unbuilt('{"a":1}')}
    assert counted_hash(heavy, b"k") == counted_hash({"arguments": Unbuilt('{"a":1}')}, b"k")
    assert counted_hash(heavy, b"k") != counted_hash({"arguments": Unbuilt('{"a": 1}')}, b"k")
