"""The hash of arguments."""

import hashlib
import json
from typing import Any

from mcpguard.core.arguments import args_hash


def test_equal_arguments_have_the_same_hash_in_any_order_and_spelling() -> None:
    one = json.loads('{"a":1,"b":{"c":"\\u00e9","d":[1,2]}}')
    other = json.loads('{"b":{"d":[1,2],"c":"é"},"a":1}')
    assert args_hash(one, b"k") == args_hash(other, b"k")
    assert args_hash(one, b"k") == hashlib.blake2b(b'{"a":1,"b":{"c":"\\u00e9","d":[1,2]}}', key=b"k", digest_size=12).digest()


def test_other_arguments_or_another_key_give_another_hash() -> None:
    values: list[Any] = [None, {}, {"a": 1}, {"a": "1"}, {"a": True}, {"a": None}, {"a": [1]}, {"a": {"b": 1}}, "\ud800"]
    assert len({args_hash(value, b"k") for value in values}) == len(values)
    assert args_hash({}, b"k") != args_hash({}, b"l")
