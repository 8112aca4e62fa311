"""Strict JSON without objects: for lines that would cost many times their size if all that they hold were built.

A list of empty lists takes two bytes of a line for each, and 88 in Python's memory. So of a heavy line only what the guard
looks at is built; the rest is checked against the grammar, by the same rules as the parser has, and kept as its text.
"""

import re
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from mcpguard.core import meta

HEAVY_PARTS: Final = 50_000
"""Commas and opening brackets from which on a line is heavy."""

_LIGHT_CHARS: Final = 4096
"""What the guard looks at is built up to this length; texts always, since they do not grow."""

_WANTED: Final = frozenset({"method", "id", "name", "task", "requestState", "inputResponses"})

_INSIDE: Final = {"": "params", "params": "_meta"}
"""In the envelope, and in params: the member that is looked into in its turn."""

_WS: Final = r"[ \t\n\r]*+"
_STRING: Final = r'"(?:[^"\\\x00-\x1f]++|\\(?:["\\/bfnrt]|u[0-9A-Fa-f]{4}))*+"'
_SCALAR: Final = rf"(?:{_STRING}|-?(?:0|[1-9][0-9]*+)(?:\.[0-9]++)?+(?:[eE][+-]?+[0-9]++)?+|true|false|null)"


def _with_containers_of(value: str) -> str:
    """A pattern for what `value` matches, and for arrays and objects of that."""
    member = rf"{_STRING}{_WS}:{_WS}{value}"
    array = rf"\[{_WS}(?:{value}{_WS}(?:,{_WS}{value}{_WS})*+)?+\]"
    obj = rf"\{{{_WS}(?:{member}{_WS}(?:,{_WS}{member}{_WS})*+)?+\}}"
    return rf"(?:{_SCALAR}|{array}|{obj})"


# Two levels at the speed of the pattern; what is deeper is taken level by level
_SHALLOW: Final = _with_containers_of(_with_containers_of(_SCALAR))


class _Lazy:
    """A pattern's `match`, compiled when it is first needed: most sessions never see a heavy line, and all have a start."""

    def __init__(self, pattern: str) -> None:
        self._pattern = pattern
        self._match: Callable[[str, int], re.Match[str] | None] | None = None

    def __call__(self, text: str, at: int) -> re.Match[str] | None:
        if self._match is None:
            self._match = re.compile(self._pattern).match
        return self._match(text, at)


_shallow = _Lazy(rf"{_WS}{_SHALLOW}")
_items = _Lazy(rf"(?:{_WS}{_SHALLOW}{_WS},)*+")
_members = _Lazy(rf"(?:{_WS}{_STRING}{_WS}:{_WS}{_SHALLOW}{_WS},)*+")
_key = _Lazy(rf"{_WS}({_STRING}){_WS}:{_WS}")
_opening = _Lazy(rf"{_WS}([\[{{])")
_after = _Lazy(rf"{_WS}([,\]}}])")
_empty = _Lazy(rf"[\[{{]{_WS}[\]}}]")
_space = _Lazy(_WS)


class Unbuilt(NamedTuple):
    """A value that was only checked: its text."""

    text: str


Decode = Callable[[str, int], tuple[object, int]]
MakeObject = Callable[[list[tuple[str, object]]], dict[str, object]]


def is_heavy(line: bytes) -> bool:
    """Whether building all of a line could cost many times its size."""
    return len(line) > HEAVY_PARTS and line.count(b",") + line.count(b"[") + line.count(b"{") > HEAVY_PARTS


def skip(text: str, at: int) -> int:
    """Where the JSON value at `at` ends. Nothing is built, and a value of any depth needs a word of memory a level.

    Raises:
        ValueError: There is none, or not by the rules.
    """
    closers: list[str] = []
    while True:
        if closers and closers[-1] == "}":
            at = _matched(_key(text, at)).end()
        value = _shallow(text, at)
        if value is None:
            opened = _matched(_opening(text, at))
            closers.append("]" if opened[1] == "[" else "}")
            at = _past_shallow(text, opened.end(), closers[-1])
            continue
        at = value.end()
        while closers:
            after = _matched(_after(text, at))
            at = after.end()
            if after[1] == ",":
                at = _past_shallow(text, at, closers[-1])
                break
            if after[1] != closers.pop():
                raise ValueError("a bracket that closes another kind")
        if not closers:
            return at


def _past_shallow(text: str, at: int, closer: str) -> int:
    """Past all the members of a container that are shallow and have another one after them."""
    return _matched((_items if closer == "]" else _members)(text, at)).end()


def _matched(match: re.Match[str] | None) -> re.Match[str]:
    if match is None:
        raise ValueError("not JSON")
    return match


def elements(text: str, at: int) -> Iterator[tuple[int, int]]:
    """Where each element of the array at `at` begins and ends, and last where the array itself ends, twice.

    Raises:
        ValueError: It is not by the rules.
    """
    at = _matched(_opening(text, at)).end()
    while True:
        at = _matched(_space(text, at)).end()
        end = skip(text, at)
        yield at, end
        after = _matched(_after(text, end))
        at = after.end()
        if after[1] == "]":
            yield at, at
            return
        if after[1] != ",":
            raise ValueError("a bracket that closes another kind")


def skim(text: str, at: int, decode: Decode, make: MakeObject, *, most: int) -> tuple[object, int]:
    """A message, or a batch of them, of which only what the guard looks at is built.

    Args:
        text: The line.
        at: Where it begins, after spaces.
        decode: Builds the value at a place, and says where it ends.
        make: Makes an object of keys and values, some of which may come twice.
        most: How many members of a batch are built.

    Returns:
        The value and where it ends. What was not built is `Unbuilt`.

    Raises:
        ValueError: It is not by the rules.
    """
    if text[at : at + 1] == "{":
        return _skim_object(text, at, decode, make)
    if text[at : at + 1] != "[" or _empty(text, at):
        end = skip(text, at)
        return [] if text[at : at + 1] == "[" else Unbuilt(text[at:end]), end
    batch: list[object] = []
    for start, end in elements(text, at):
        if start == end:
            return batch, end
        if len(batch) == most:  # too many: it is enough to know where they end
            return [*batch, None], skip(text, at)
        batch.append(_skim_object(text, start, decode, make)[0] if text[start] == "{" else None)
    raise AssertionError("an array without an end")  # pragma: no cover - `elements` ends with one


def _skim_object(text: str, at: int, decode: Decode, make: MakeObject, where: str = "") -> tuple[dict[str, object], int]:
    """An object whose members are built if the guard looks at them: the envelope, params, or `_meta`, which keeps no others."""
    empty = _empty(text, at)
    if empty:
        return {}, empty.end()
    pairs: list[tuple[str, object]] = []
    at += 1
    while True:
        found = _matched(_key(text, at))
        key = str(decode(found[1], 0)[0])
        start = found.end()
        if key == _INSIDE.get(where) and text[start : start + 1] == "{":
            inner, end = _skim_object(text, start, decode, make, key)
            pairs.append((key, inner))
        else:
            end = skip(text, start)
            if where != "_meta" or key in meta.READ:
                pairs.append((key, Unbuilt(text[start:end])))
        after = _matched(_after(text, end))
        at = after.end()
        if after[1] == "}":
            break
        if after[1] != ",":
            raise ValueError("a bracket that closes another kind")
    made = make(pairs)
    for key in made if where == "_meta" else made.keys() & _WANTED:
        value = made[key]
        if isinstance(value, Unbuilt) and (len(value.text) <= _LIGHT_CHARS or value.text[0] == '"'):
            made[key] = decode(value.text, 0)[0]
    return made, at
