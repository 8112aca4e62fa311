"""JSON as it is written: every key of an object, in order, and where each value ends.

A second reader beside the one under test, which shares no code with it. The strict one takes RFC 8259 and nothing else; the
lenient one takes what some parser somewhere takes: NaN, control characters in strings, unknown escapes, odd spaces, commas
too many.
"""

import re
from functools import lru_cache
from typing import Final, TypeAlias

MAX_DEPTH: Final = 512


class Pairs(list[tuple[str, "Value"]]):
    """An object."""


class Number(str):
    """A number, as it is spelled."""

    __slots__ = ()


Value: TypeAlias = "Pairs | list[Value] | Number | str | bool | None"

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
    """Reads one value. Needs no stack of its own, however deep the value is."""

    def __init__(self, space: str, string: str, number: str) -> None:
        self._space = re.compile(space)
        self._token = re.compile(f'"(?P<string>{string})"|(?P<number>{number})|(?P<word>true|false|null)', re.DOTALL)
        self.allows_spare_commas = False

    def skip(self, text: str, at: int) -> int:
        """Where the space at `at` ends."""
        if text[at : at + 1] in '"[]{},':  # none is there, which is so most of the time; nor is one at the end of the text
            return at
        match = self._space.match(text, at)
        assert match
        return match.end()

    def read(self, text: str, at: int = 0) -> tuple[Value, int]:
        """The value at `at`, and where it ends.

        Raises:
            ValueError: There is none, or it is nested deeper than `MAX_DEPTH`.
        """
        root: list[Value] = []
        open_values: list[tuple[Pairs | list[Value], str | None]] = [(root, None)]
        while True:
            at = self.skip(text, at)
            value, at, opened = self._start(text, at)
            if opened:
                container: Pairs | list[Value] = Pairs() if text[at - 1] == "{" else []
                at = self.skip(text, at)
                if text[at : at + 1] != ("}" if isinstance(container, Pairs) else "]"):
                    if len(open_values) > MAX_DEPTH:
                        raise ValueError("too deep")
                    key, at = self._key(text, at) if isinstance(container, Pairs) else (None, at)
                    open_values.append((container, key))
                    continue
                if len(open_values) > MAX_DEPTH:
                    raise ValueError("too deep")
                value, at = container, at + 1
            value, at = self._close(text, at, value, open_values)
            if len(open_values) == 1:
                return value, at

    @lru_cache(maxsize=64)  # noqa: B019 - there are two readers
    def whole(self, text: str) -> Value:
        """The only value of `text`. Every part of a check reads the same lines: nobody may change what is returned.

        Raises:
            ValueError: It is not one value.
        """
        value, end = self.read(text)
        if self.skip(text, end) != len(text):
            raise ValueError("more than one")
        return value

    def all(self, text: str) -> list[Value]:
        """The values that follow one another in `text`, as far as they can be read."""
        try:
            return [self.whole(text)]
        except ValueError:
            pass
        values = []
        at = self.skip(text, 0)
        while at < len(text):
            try:
                value, at = self.read(text, at)
            except ValueError:
                break
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

    def _start(self, text: str, at: int) -> tuple[Value, int, bool]:
        """A scalar; or the opening of a container, and True."""
        if text[at : at + 1] in {"{", "["}:
            return None, at + 1, True
        match = self._token.match(text, at)
        if not match:
            raise ValueError("no value")
        if match["string"] is not None:
            return unescape(match["string"]), match.end(), False
        if match["number"] is not None:
            return Number(match["number"]), match.end(), False
        return _WORDS[match["word"]], match.end(), False

    def _key(self, text: str, at: int) -> tuple[str, int]:
        at = self.skip(text, at)
        match = self._token.match(text, at)
        if not match or match["string"] is None:
            raise ValueError("no key")
        at = self.skip(text, match.end())
        if text[at : at + 1] != ":":
            raise ValueError("no colon")
        return unescape(match["string"]), at + 1

    def _close(
        self, text: str, at: int, value: Value, open_values: list[tuple[Pairs | list[Value], str | None]]
    ) -> tuple[Value, int]:
        """Put a finished value where it belongs, and close every container that ends after it."""
        while len(open_values) > 1:
            container, key = open_values.pop()
            if isinstance(container, Pairs):
                assert key is not None
                container.append((key, value))
            else:
                container.append(value)
            closing = "}" if isinstance(container, Pairs) else "]"
            at = self.skip(text, at)
            mark = text[at : at + 1]
            if mark == ",":
                at = self.skip(text, at + 1)
                mark = text[at : at + 1]
                if not (mark == closing and self.allows_spare_commas):
                    next_key, at = self._key(text, at) if isinstance(container, Pairs) else (None, at)
                    open_values.append((container, next_key))
                    return value, at
            if mark != closing:
                raise ValueError("no end")
            value, at = container, at + 1
        return value, at


STRICT: Final = Reader(
    r"[ \t\r\n]*+",
    r'(?:[^"\\\x00-\x1f]++|\\(?:["\\/bfnrt]|u[0-9A-Fa-f]{4}))*+',
    r"-?(?:0|[1-9][0-9]*+)(?:\.[0-9]++)?(?:[eE][+-]?[0-9]++)?",
)
LENIENT: Final = Reader(
    "[\\s\x00\ufeff]*+", r'(?:[^"\\]++|\\.)*+', r"[+-]?(?:NaN|nan|Infinity|inf|[0-9]++(?:\.[0-9]*+)?(?:[eE][+-]?[0-9]++)?)"
)
LENIENT.allows_spare_commas = True
