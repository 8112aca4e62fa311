"""Edits of arrays and objects in the style of the file around them. Each insertion can be undone exactly by a removal."""

import re
from collections.abc import Sequence
from typing import Final

from mcpguard.clients.documents import Dialect, Document
from mcpguard.clients.nodes import Array, Member, Object, Splice, content_end

_COMMA: Final = re.compile(r"((?>[ \t\r\n]+|//[^\r\n]*|/\*.*?\*/|#[^\n]*)*+),", re.DOTALL)
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
            kept = _without_comma(text[item.end : array.leads[at + 1]])
            splices.append(Splice(array.leads[at], array.leads[at + 1], kept))
        return splices
    gaps = zip(array.items, array.leads[1:], strict=False)
    if not array.is_block and (comments := "".join(_without_comma(text[item.end : lead]) for item, lead in gaps)):
        rest = _without_comma(text[array.items[-1].end : array.end - 1], or_all=True)
        return [Splice(array.leads[0], array.end - 1, comments + rest)]
    whole = (array.items[0].start, array.items[-1].end)
    return [without_child(document, array, [whole], 0)]


def emptied_block(document: Document, array: Array, member: Member) -> Splice:
    """Replace a YAML block, which cannot be empty, by an empty array. Comments stay."""
    text = document.text
    gaps = [text[member.key_end : array.leads[0]].partition(":")[2]]
    gaps += [text[item.end : lead] for item, lead in zip(array.items, array.leads[1:], strict=False)]
    beside, *below = [line.rstrip() for line in "".join(gaps).split("\n")]
    comments = document.line_break(array.start).join([beside, *filter(None, below)])
    return Splice(member.key_end, array.items[-1].end, f": []{comments}")


def member_after(document: Document, holder: Object, member: Member, key: str, tokens: Sequence[str]) -> str:
    """The text of a new member with an array, for insertion right after another member's value."""
    text = document.text
    relation = text[member.key_end : member.node.start]
    if relation.strip(" \t") not in (":", "=") or (document.dialect is Dialect.YAML and relation == ":"):
        relation = ": "
    space = "" if relation in (":", "=") else " "
    name = f'"{key}"' if document.dialect.is_json else text[member.start : member.key_start] + key
    value = f"[{f',{space}'.join(tokens)}]"
    start = document.line_start(member.start)
    if holder.is_block:
        column = member.start - start
        indentation = " " * column if document.dialect is Dialect.YAML else document.indentation(member.start)
        return f"{document.line_break(member.start)}{indentation}{name}{relation}{value}"
    indentation = document.indentation(member.start)
    begins_line = start + len(indentation) == member.start
    gap = document.line_break(member.start) + indentation if begins_line else space
    return f",{gap}{name}{relation}{value}"


def without_member(document: Document, holder: Object, member: Member) -> Splice | None:
    """Remove a member from an object; None if a block has a comment or anything else beside it."""
    text = document.text
    at = holder.members.index(member)
    if not holder.is_block:
        return without_child(document, holder, [(child.start, child.node.end) for child in holder.members], at)
    before, end = content_end(holder.members[at - 1].node) if at else len(text), content_end(member.node)
    if before < member.start and not text[before : member.start].strip():
        return Splice(before, end, "")
    start = document.line_start(member.start)
    line_end = text.find("\n", end) + 1 or len(text)
    is_alone = not (text[start : member.start] + text[end:line_end]).strip()
    return Splice(start, line_end, "") if is_alone else None


def without_child(document: Document, container: Array | Object, spans: Sequence[tuple[int, int]], at: int) -> Splice:
    """Remove an item or a member, and one comma, from a container with brackets. Comments stay.

    Args:
        document: The file.
        container: The array or object.
        spans: Where its items or members begin and end.
        at: Which of them to remove.
    """
    text = document.text
    start, end = spans[at]
    if at > 0:
        before = spans[at - 1][1]
        return Splice(before, end, _without_comma(text[before:start]))
    if len(spans) > 1:
        following = spans[1][0]
        return Splice(start, following, _without_comma(text[end:following]))
    rest = _without_comma(text[end : container.end - 1], or_all=True)
    before_first = text[container.start + 1 : start]
    if before_first and not (before_first + rest).strip():  # what is inserted into an empty container follows its bracket
        return Splice(container.start + 1, container.end - 1, "")
    return Splice(start, container.end - 1, rest)


def _without_comma(gap: str, *, or_all: bool = False) -> str:
    """The comments of a gap between items, with their white space; with `or_all`, the white space alone, too."""
    comma = _COMMA.match(gap)
    left = comma[1] + gap[comma.end() :] if comma else gap
    return left if or_all or left.strip() else ""
