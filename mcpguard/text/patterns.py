"""Patterns with `*`: what they match, and which of many cover which others."""

from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from operator import add, or_


def glob(pattern: str, text: str) -> bool:
    """Whether a pattern, in which `*` stands for any text or none, matches a text. Takes time linear in both.

    >>> glob("crm_*", "crm_read"), glob("crm_*", "crm"), glob("*", "")
    (True, False, True)
    """
    return matcher(pattern)(text)


def matcher(pattern: str) -> Callable[[str], bool]:
    """`glob` for one pattern and many texts."""
    first, *middle = pattern.split("*")
    if not middle:
        return pattern.__eq__
    last = middle.pop()
    begin, least = len(first), len(first) + len(last)

    def matches(text: str) -> bool:
        if len(text) < least or not text.startswith(first) or not text.endswith(last):
            return False
        position, end = begin, len(text) - len(last)
        for piece in middle:
            found = text.find(piece, position, end)
            if found < 0:
                return False
            position = found + len(piece)
        return True

    return matches


def coverage(lists: Sequence[Sequence[str]], *, meet: bool) -> list[int]:
    """For each of some lists of patterns, the lists that it covers, as a set of bits: `1 << at` for the list with index `at`.

    A list covers another if each of its patterns matches the text of one of the other's patterns. So a list covers itself, and
    an empty list covers all lists.

    >>> [f"{bits:b}" for bits in coverage([[], ["a*"], ["ab"]], meet=True)]
    ['111', '110', '100']

    Args:
        lists: The lists.
        meet: Whether each list has at most one pattern, and all patterns match one text. Then patterns with one `*` are
            compared by the lengths of their two ends, which is faster.
    """
    plain = [[_without_repeated_stars(pattern) for pattern in patterns] for patterns in lists]
    holders: dict[str, int] = {}  # by pattern, the lists that have it
    for at, patterns in enumerate(plain):
        for pattern in patterns:
            holders[pattern] = holders.get(pattern, 0) | 1 << at
    covered = _covered_if_they_meet(holders) if meet else {}
    index: _Index | None = None
    for pattern in holders:
        if pattern.count("*") > (1 if meet else 0):
            index = index or _Index(list(holders))
            matched = index.matched_by(pattern)  # at least the pattern itself
            covered[pattern] = reduce(or_, [holders[other] for other in matched])
        elif not meet:
            covered[pattern] = holders[pattern]
    result = []
    for patterns in plain:
        bits = (1 << len(lists)) - 1
        for pattern in patterns:
            bits &= covered[pattern]
        result.append(bits)
    return result


def _covered_if_they_meet(holders: Mapping[str, int]) -> dict[str, int]:
    """The lists that each pattern with at most one `*` covers, if all patterns match one text.

    Every pattern begins and ends as that text does. So of two beginnings the longer one begins with the shorter one, and
    a pattern covers the patterns whose beginning and end are at least as long as its own.
    """
    begins = _at_least(holders, lambda pattern: len(pattern.partition("*")[0]))
    ends = _at_least(holders, lambda pattern: len(pattern.rpartition("*")[2]))
    covered = dict(holders)
    for pattern in holders:
        first, *more = pattern.split("*")
        if len(more) == 1:
            covered[pattern] = begins[len(first)] & ends[len(more[0])]
    return covered


def _at_least(holders: Mapping[str, int], size: Callable[[str], int]) -> dict[int, int]:
    """For each size of a pattern, the lists that have a pattern of at least this size."""
    found: dict[int, int] = {}
    bits = 0
    for pattern in sorted(holders, key=size, reverse=True):
        bits |= holders[pattern]
        found[size(pattern)] = bits
    return found


class _Index:
    """Finds the texts that a pattern matches. It tries only texts with all characters and pairs of characters of the pattern.

    Args:
        texts: The texts.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self._texts = texts
        self._having: dict[str, int] = {}
        for at, text in enumerate(texts):
            for part in _parts(text):
                self._having[part] = self._having.get(part, 0) | 1 << at

    def matched_by(self, pattern: str) -> list[str]:
        """The texts that a pattern matches."""
        candidates = (1 << len(self._texts)) - 1
        for piece in pattern.split("*"):
            for part in _parts(piece):
                candidates &= self._having.get(part, 0)
        matches = matcher(pattern)
        found = []
        while candidates:
            lowest = candidates & -candidates
            candidates ^= lowest
            text = self._texts[lowest.bit_length() - 1]
            if matches(text):
                found.append(text)
        return found


def _parts(text: str) -> set[str]:
    """The characters of a text, and its pairs of adjacent characters."""
    return {*text, *map(add, text, text[1:])}


def _without_repeated_stars(pattern: str) -> str:
    """An equivalent pattern, with one `*` for several in a row."""
    while "**" in pattern:
        pattern = pattern.replace("**", "*")
    return pattern
