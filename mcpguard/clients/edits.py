"""Edits of arrays and objects in the style of the file around them. Each insertion can be undone exactly by a removal."""

import re
from collections.abc import Sequence
from typing import Final

from mcpguard.clients.documents import Dialect, Document
from mcpguard.clients.nodes import Array, Member, Object, Splice

_COMMA: Final = re.compile(r"((?:[ \t\r\n]+|//[^\r\n]*|/\*.*?\*/|#[^\n]*)*),", re.DOTALL)
"""The next comma that is not in a comment. Comments of one dialect cannot begin where another dialect's can."""


def prepended(document: Document, array: Array, tokens: Sequence[str]) -> Splice:
    """Insert items before the first item of an array.

    An array without items gets them right after its bracket, and everything that it contains stays behind them.
    """
    text = document.text
    if not array.items:
        return Splice(array.start + 1, array.start + 1, ", ".join(tokens))
    lead = array.leads[0]
    if array.is_block:
        gap = document.line_break(lead) + " " * (lead - document.line_start(lead))
        return Splice(lead, lead, "".join(f"- {token}{gap}" for token in tokens))
    if "\n" in text[array.start : lead]:
        gap = "," + document.line_break(lead) + document.indentation(lead)
    else:
        between = text[array.items[0].end : array.leads[1]] if len(array.items) > 1 else ""
        gap = between if between.rstrip(" \t") == "," else ", "
    return Splice(lead, lead, "".join(token + gap for token in tokens))


def without_first(document: Document, array: Array, count: int) -> list[Splice]:
    """Remove the first items of an array. Comments between them stay."""
    text = document.text
    if count < len(array.items):
        splices = []
        for at, item in enumerate(array.items[:count]):
            gap = text[item.end : array.leads[at + 1]]
            comma = _COMMA.match(gap)
            kept = comma[1] + gap[comma.end() :] if comma and not array.is_block else gap
            kept = kept if kept.strip() else ""
            splices.append(Splice(array.leads[at], array.leads[at + 1], kept))
        return splices
    first, last = array.items[0].start, array.items[-1].end
    rest = text[last : array.end - 1]
    comma = _COMMA.match(rest)
    rest = comma[1] + rest[comma.end() :] if comma else rest
    before = text[array.start + 1 : first]
    if before and not (before + rest).strip():  # `prepended` leaves nothing before the first item
        return [Splice(array.start + 1, array.end - 1, "")]
    return [Splice(first, array.end - 1, rest)]


def emptied_block(array: Array, member: Member) -> Splice:
    """Replace a YAML block, which cannot be empty, by an empty array."""
    return Splice(member.key_end, array.items[-1].end, ": []")


def member_after(document: Document, holder: Object, member: Member, key: str, tokens: Sequence[str]) -> str:
    """The text of a new member with an array, for insertion right after another member's value."""
    text = document.text
    relation = text[member.key_end : member.node.start]
    if relation.strip(" \t") not in (":", "="):
        relation = " = " if document.dialect is Dialect.TOML else ": "
    space = "" if relation in (":", "=") else " "
    name = f'"{key}"' if document.dialect.is_json else text[member.start : member.key_start] + key
    value = f"[{f',{space}'.join(tokens)}]"
    start = document.line_start(member.start)
    if holder.is_block:
        column = member.start - start
        indentation = " " * column if document.dialect is Dialect.YAML else document.indentation(member.start)
        return f"{document.line_break(member.start)}{indentation}{name}{relation}{value}"
    begins_line = start > 0 and not text[start : member.start].strip(" \t")
    gap = document.line_break(member.start) + document.indentation(member.start) if begins_line else space
    return f",{gap}{name}{relation}{value}"


def without_member(document: Document, holder: Object, member: Member) -> Splice | None:
    """Remove a member from an object; None if something that must stay, such as a comment, is in between."""
    text = document.text
    at = holder.members.index(member)
    blank = " \t\r\n" if holder.is_block else " \t\r\n,"
    if at > 0:
        end = holder.members[at - 1].node.end
        if end < member.start and not text[end : member.start].strip(blank):
            return Splice(end, member.node.end, "")
    if holder.is_block:
        start = document.line_start(member.start)
        line_end = text.find("\n", member.node.end) + 1 or len(text)
        if not (text[start : member.start] + text[member.node.end : line_end]).strip():
            return Splice(start, line_end, "")
        return None
    end = holder.members[at + 1].start if at + 1 < len(holder.members) else member.node.end
    if text[member.node.end : end].strip(blank):
        return None
    return Splice(member.start, end, "")
