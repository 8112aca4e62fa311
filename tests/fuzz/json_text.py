"""JSON as it is written: every key of an object, in order, and where each value ends.

A second reader beside the one under test, which shares no code with it. The strict one takes RFC 8259 and nothing else; the
lenient one takes what some parser somewhere takes: NaN, control characters in strings, unknown escapes, odd spaces, commas
too many.
"""

import contextlib
import re
from functools import lru_cache
from typing import Final, TypeAlias, TypeGuard

MAX_DEPTH: Final = 512


class Pairs(list[tuple[str, "Value"]]):
    """An object."""


class Number(str):
    """A number, as it is spelled."""

    __slots__ = ()


Value: TypeAlias = "Pairs | list[Value] | Number | str | bool | None"


def is_text(value: object) -> TypeGuard[str]:
    return isinstance(value, str) and not isinstance(value, Number)


_SIMPLE: Final = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}
_ESCAPE = re.compile(r"\\(?:u([0-9A-Fa-f]{4})|(.))", re.DOTALL)
_PAIR = re.compile("[\ud800-\udbff][\udc00-\udfff]")
_WORDS: Final[dict[str, Value]] = {"true": True, "false": False, "null": None}


def unescape(text: str) -> str:
    """The inside of a string. A surrogate that has no other half stays as it is."""
    if "\\" not in text:
        return text
    text = _ESCAPE.sub(lambda match: chr(int(match[1], 16)) if match[1] else _SIMPLE.get(match[2], match[2]), text)
    return _PAIR.sub(lambda match: match[0].encode("utf-16", "surrogatepass").decode("utf-16"), text)


class Reader:
    def __init__(self, space: str, string: str, number: str, *, allows_spare_commas: bool = False) -> None:
        self._space = re.compile(space)
        self._token = re.compile(f'"(?P<string>{string})"|(?P<number>{number})|(?P<word>true|false|null)', re.DOTALL)
        self._allows_spare_commas = allows_spare_commas

    def skip(self, text: str, at: int) -> int:
        """Where the space at `at` ends."""
        if text[at : at + 1] in '"[]{},':  # none is there, which is so most of the time; nor is one at the end of the text
            return at
        match = self._space.match(text, at)
        assert match
        return match.end()

    def read(self, text: str, at: int = 0, depth: int = 0) -> tuple[Value, int]:
        """The value at `at`, and where it ends. ValueError if there is none, or if it is nested deeper than `MAX_DEPTH`."""
        at = self.skip(text, at)
        opening = text[at : at + 1]
        if opening not in {"{", "["}:
            return self._scalar(text, at)
        if depth == MAX_DEPTH:
            raise ValueError("too deep")
        container: Pairs | list[Value] = Pairs() if opening == "{" else []
        closing = "}" if opening == "{" else "]"
        at = self.skip(text, at + 1)
        if text[at : at + 1] == closing:
            return container, at + 1
        while True:
            if isinstance(container, Pairs):
                key, at = self._key(text, at)
                value, at = self.read(text, at, depth + 1)
                container.append((key, value))
            else:
                value, at = self.read(text, at, depth + 1)
                container.append(value)
            at = self.skip(text, at)
            if text[at : at + 1] == ",":
                at = self.skip(text, at + 1)
                if text[at : at + 1] != closing or not self._allows_spare_commas:
                    continue
            if text[at : at + 1] != closing:
                raise ValueError("no end")
            return container, at + 1

    @lru_cache(maxsize=64)  # noqa: B019 - there are two readers
    def whole(self, text: str) -> Value:
        """The only value of `text`, or ValueError. All parts of a check share what is returned: nobody may change it."""
        value, end = self.read(text)
        if self.skip(text, end) != len(text):
            raise ValueError("more than one")
        return value

    def all(self, text: str) -> list[Value]:
        """The values that follow one another in `text`, as far as they can be read."""
        with contextlib.suppress(ValueError):
            return [self.whole(text)]
        values = []
        at = self.skip(text, 0)
        with contextlib.suppress(ValueError):
            while at < len(text):
                value, at = self.read(text, at)
                values.append(value)
                at = self.skip(text, at)
        return values

    def members(self, text: str) -> list[tuple[Value, str]]:
        """The members of a batch that has been read already, each with its text."""
        found = []
        at = self.skip(text, text.index("[") + 1)
        while text[at] != "]":
            value, end = self.read(text, at)
            found.append((value, text[at:end]))
            at = self.skip(text, end)
            if text[at] == ",":
                at = self.skip(text, at + 1)
        return found

    def _scalar(self, text: str, at: int) -> tuple[Value, int]:
        match = self._token.match(text, at)
        if not match:
            raise ValueError("no value")
        if match["string"] is not None:
            return unescape(match["string"]), match.end()
        return Number(match["number"]) if match["number"] is not None else _WORDS[match["word"]], match.end()

    def _key(self, text: str, at: int) -> tuple[str, int]:
        key, at = self._scalar(text, at)
        at = self.skip(text, at)
        if not is_text(key) or text[at : at + 1] != ":":
            raise ValueError("no key")
        return key, at + 1


STRICT: Final = Reader(
    r"[ \t\r\n]*+",
    r'(?:[^"\\\x00-\x1f]++|\\(?:["\\/bfnrt]|u[0-9A-Fa-f]{4}))*+',
    r"-?(?:0|[1-9][0-9]*+)(?:\.[0-9]++)?(?:[eE][+-]?[0-9]++)?",
)
LENIENT: Final = Reader(
    "[\\s\x00\ufeff]*+",
    r'(?:[^"\\]++|\\.)*+',
    r"[+-]?(?:NaN|nan|Infinity|inf|[0-9]++(?:\.[0-9]*+)?(?:[eE][+-]?[0-9]++)?)",
    allows_spare_commas=True,
)
