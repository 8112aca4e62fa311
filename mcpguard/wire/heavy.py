"""Tells which lines are heavy. `skim` checks those. It is loaded with the first of them, because few sessions see one."""

from mcpguard.light_typing import Final, NamedTuple

HEAVY_PARTS: Final = 50_000
"""A line with more commas and opening brackets than this is heavy."""


class TooDeep(ValueError):
    """Arrays and objects are nested deeper than allowed."""


class Unbuilt(NamedTuple):
    """The text of a value that was checked but not built."""

    text: str


def is_heavy(line: bytes) -> bool:
    """Whether building all of a line could take many times its size."""
    return len(line) > HEAVY_PARTS and line.count(b",") + line.count(b"[") + line.count(b"{") > HEAVY_PARTS
