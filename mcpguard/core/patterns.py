"""Patterns with `*`: what they match, and which of many cover which others."""

from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from operator import or_
from typing import Final

_AGENT_PARTS: Final = 3


def glob(pattern: str, text: str) -> bool:
    """Whether `text` is matched by `pattern`, in which `*` stands for any text, also none. Time is linear in both.

    >>> glob("crm_*", "crm_read"), glob("crm_*", "crm"), glob("*", "")
    (True, False, True)
    """
    first, *middle = pattern.split("*")
    if not middle:
        return pattern == text
    last = middle.pop()
    end = len(text) - len(last)
    position = len(first)
    if position > end or not text.startswith(first) or not text.endswith(last):
        return False
    for piece in middle:
        found = text.find(piece, position, end)
        if found < 0:
            return False
        position = found + len(piece)
    return True


def glob_agent(pattern: str, text: str) -> bool:
    """`glob` for each of an agent's three parts, so that `*` does not cross `::`."""
    patterns, parts = pattern.split("::"), text.split("::")
    return len(patterns) == len(parts) == _AGENT_PARTS and all(map(glob, patterns, parts))


def coverage(lists: Sequence[Sequence[str]], *, meet: bool) -> list[int]:
    """Which of some lists of patterns each of them covers, itself among them, as a set of bits: `1 << at` for the list at `at`.

    A list covers another if each of its patterns matches a pattern of the other, taken as text. An empty list covers all.

    >>> [f"{bits:b}" for bits in coverage([[], ["a*"], ["ab"]], meet=True)]
    ['111', '110', '100']

    Args:
        lists: The lists.
        meet: Whether each list has one pattern at most, and all of these match one text. Then only patterns with more than one
            `*` are compared with each other; else all that have any.
    """
    plain = [[_without_repeated_stars(pattern) for pattern in patterns] for patterns in lists]
    holders: dict[str, int] = {}
    for at, patterns in enumerate(plain):
        for pattern in patterns:
            holders[pattern] = holders.get(pattern, 0) | 1 << at
    covered = _covered(holders, meet=meet)
    result = []
    for patterns in plain:
        bits = (1 << len(lists)) - 1
        for pattern in patterns:
            bits &= covered[pattern]
        result.append(bits)
    return result


def _covered(holders: Mapping[str, int], *, meet: bool) -> dict[str, int]:
    """The lists that have a pattern which each pattern covers."""
    begins = _at_least(holders, lambda pattern: len(pattern.partition("*")[0]))
    ends = _at_least(holders, lambda pattern: len(pattern.rpartition("*")[2]))
    covered = dict(holders)
    for pattern in holders:
        first, *middle = pattern.split("*")
        if not middle:
            continue
        last = middle.pop()
        # What a common text is matched by begins and ends as it does: of two patterns the longer beginning has the shorter one
        candidates = begins[len(first)] & ends[len(last)] if meet else -1
        if middle or not meet:
            compared = [bits for other, bits in holders.items() if bits & candidates and glob(pattern, other)]
            candidates = reduce(or_, compared)  # the pattern itself is one
        covered[pattern] = candidates
    return covered


def _at_least(holders: Mapping[str, int], size: Callable[[str], int]) -> dict[int, int]:
    """The lists that have a pattern of at least some size, by each size that there is."""
    found: dict[int, int] = {}
    bits = 0
    for pattern in sorted(holders, key=size, reverse=True):
        bits |= holders[pattern]
        found[size(pattern)] = bits
    return found


def _without_repeated_stars(pattern: str) -> str:
    """The pattern that matches the same, with one `*` for several in a row."""
    while "**" in pattern:
        pattern = pattern.replace("**", "*")
    return pattern
