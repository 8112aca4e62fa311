"""The form of a call: its text without the values that differ between the calls of one client.

A JSON parser reads from left to right. So where two texts are equal up to a value, both values are in the same place. And if
only such values differ, and each is one JSON value, the texts have the same members.
"""

import re
from collections.abc import Callable, Iterator

from mcpguard.light_typing import Final, NamedTuple, Self

_Scan = Callable[[str, int], tuple[object, int]]
"""Parses the value at an index; returns it and the index after it. Raises `ValueError` or `StopIteration` if there is none."""

# Compiled when the first form is made, because the client's first messages pass before that
_KEY: Final = r'[ \t\n\r]*"([^"\\]*)"[ \t\n\r]*:[ \t\n\r]*'
_AFTER: Final = r"[ \t\n\r]*[,}]"


class DifferingValue(NamedTuple):
    """A value that may differ.

    Attributes:
        before: The text between the value before it and this one.
        member: What it is: `id`, or a member of `params`.
        text: Its text in the call that the form was made from; empty for an id, a number or a word: the latter can go on.
    """

    before: str
    member: str
    text: str


class Form(NamedTuple):
    """The form of a call, made from one that strict parsing has accepted.

    Attributes:
        differing: The values that may differ, in order.
        end: The text after the last of them.
        params: The call's `params`.
        scan: The parser.
    """

    differing: tuple[DifferingValue, ...]
    end: str
    params: dict[str, object]
    scan: _Scan

    @classmethod
    def of(cls, text: str, params: dict[str, object], scan: _Scan) -> Self | None:
        """The form of a call; None if it has escapes in a key, or space before it.

        Args:
            text: Its text: one JSON object.
            params: Its `params`.
            scan: The parser that has accepted it.
        """
        values: list[DifferingValue] = []
        at = 0
        for key, begin, end in _values(text, scan) if text.startswith("{") else ():
            may_repeat = key != "id" and text[end - 1] in '}]"'
            values.append(DifferingValue(text[at:begin], key, text[begin:end] if may_repeat else ""))
            at = end
        has_id = any(value.member == "id" for value in values)
        return cls(tuple(values), text[at:], params, scan) if has_id else None

    def read(self, line: bytes) -> tuple[object, dict[str, object]] | None:
        """The id and the `params` of a call of this form; None if the line has another form, or is not JSON in UTF-8.

        The caller checks the id. A client in a loop repeats its arguments. Then they are the same object as in the other calls.
        """
        differing, end, known, scan = self
        params = known.copy()
        request_id: object = None
        at = 0
        try:
            text = line.decode()
            for before, member, same in differing:
                if not text.startswith(before, at):
                    return None
                at += len(before)
                if same and text.startswith(same, at):
                    at += len(same)
                    continue
                value, at = scan(text, at)
                if member == "id":
                    request_id = value
                elif member == "name" and not (type(value) is str and value.isascii() and "\0" not in value):
                    return None  # strict parsing says whether it is a name
                else:
                    params[member] = value
        except (ValueError, StopIteration):
            return None
        return (request_id, params) if text[at:] == end else None


def _values(text: str, scan: _Scan) -> Iterator[tuple[str, int, int]]:
    """The values that may differ: their keys, and where they begin and end."""
    for key, begin, end in _members(text, 0, scan):
        if key == "id":
            yield key, begin, end
        elif key == "params":
            yield from (one for one in _members(text, begin, scan) if one[0] in {"name", "arguments", "_meta"})


def _members(text: str, at: int, scan: _Scan) -> Iterator[tuple[str, int, int]]:
    """The members of the object at an index, up to one with an escape in its key."""
    key_at, after_at = re.compile(_KEY).match, re.compile(_AFTER).match
    while key := key_at(text, at + 1):
        _, end = scan(text, key.end())
        yield key[1], key.end(), end
        after = after_at(text, end)
        if after is None or after[0].endswith("}"):
            return
        at = after.end() - 1
