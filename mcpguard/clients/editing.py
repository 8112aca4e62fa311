"""Edits the servers in a client's file: inserts `mcpguard run` before a server's command, or deletes it.

All edits of a file are made at once, and then checked at once.
"""

import contextlib
from collections.abc import Collection, Mapping

from mcpguard.clients.entries import Layout, Start, servers_of, start_of
from mcpguard.documents.document import (
    Dialect,
    Document,
    Splice,
    emptied_block,
    member_after,
    prepended,
    quoted,
    read,
    spliced,
    without,
    without_member,
)
from mcpguard.documents.model import Array, Object, Unreadable, plain
from mcpguard.light_typing import Any, Final, NamedTuple


class EntryEdit(NamedTuple):
    """What the guard of a server becomes. It must be a stdio server.

    Attributes:
        layout: Where the servers are.
        name: The server's name.
        guard: The words that go before the server's command: mcpguard's path, `run`, options, and `--`. In a guarded entry,
            only mcpguard's path is replaced. Empty to remove the words that are there.
        drop_empty_args: Whether the member with the arguments is not the user's: a removal also removes it if none is left.
    """

    layout: Layout
    name: str
    guard: tuple[str, ...] = ()
    drop_empty_args: bool = False


class Edited(NamedTuple):
    """A file after edits.

    Attributes:
        data: The file. Only the commands and the arguments of the edited servers have changed.
        done: The edits that were made. A removal of what an edit has inserted gives the old file back, with `drop_empty_args`
            for the servers that had no arguments: see `Entry.has_args`.
        faults: Why the other edits were not made.
    """

    data: bytes
    done: frozenset[EntryEdit]
    faults: tuple[Unreadable, ...]


_MAX_TRIES: Final = 64
"""How many groups of edits are tried if not all can be made. To find one in a thousand takes 20, and each parses the file."""


def edited(data: bytes, dialect: Dialect, edits: Collection[EntryEdit]) -> Edited:
    """Edit servers. The time is proportional to the size of the file.

    Raises:
        Unreadable: The file does not parse in this dialect.
        LookupError: There is no stdio server of this name.
    """
    document = read(data, dialect)
    done, faults = _possible(document, _starts(document, edits))
    if faults and (fault := _fault(document, done)):  # groups that can be edited alone, but not together
        return Edited(data, frozenset(), (*faults, fault))
    return Edited(_after(document, done), frozenset(done), tuple(faults))


def _possible(document: Document, starts: dict[EntryEdit, Start]) -> tuple[dict[EntryEdit, Start], list[Unreadable]]:
    """The edits that can be made, and why the others cannot. Those that are left after `_MAX_TRIES` are not made."""
    done: dict[EntryEdit, Start] = {}
    faults: list[Unreadable] = []
    waiting = [list(starts)]
    for _ in range(_MAX_TRIES):
        if not waiting:
            break
        group = waiting.pop()
        half = len(group) // 2
        fault = _fault(document, {edit: starts[edit] for edit in group})
        if fault is None:
            done |= {edit: starts[edit] for edit in group}
        elif half:
            waiting += [group[half:], group[:half]]
        else:
            faults.append(fault)
    if rest := {edit: starts[edit] for group in reversed(waiting) for edit in group}:
        faults.append(_uneditable(document, rest))
    return done, faults


def _after(document: Document, starts: Mapping[EntryEdit, Start]) -> bytes:
    return document.after(splice for edit, start in starts.items() for splice in _splices(document, edit, start))


def _splices(document: Document, edit: EntryEdit, start: Start) -> list[Splice]:
    if not edit.guard:
        return _removal(document, start, edit.layout, drop_empty=edit.drop_empty_args)
    if start.guard:
        return [Splice(start.program.start, start.program.end, quoted(edit.guard[0]))]
    tokens = [quoted(word) for word in edit.guard]
    if edit.layout.args is None and start.args is not None:
        return [prepended(document, start.args, tokens)]
    node = start.command.node
    moved = [*tokens[1:], document.text[node.start : node.end]]
    if start.args is None:
        added = member_after(document, start.holder, start.command, edit.layout.args or "", moved)
        return [Splice(node.start, node.end, tokens[0] + added)]
    return [Splice(node.start, node.end, tokens[0]), prepended(document, start.args, moved)]


def _removal(document: Document, start: Start, layout: Layout, *, drop_empty: bool) -> list[Splice]:
    array = start.args
    if not start.guard or array is None:
        return []
    if layout.args is None:
        return without(document, array, range(start.guard))
    old, moved = start.command.node, array.children[start.guard - 1].node
    back = Splice(old.start, old.end, document.text[moved.start : moved.end])
    return [back, *_without_guard(document, start, array, layout.args, drop_empty=drop_empty)]


def _without_guard(document: Document, start: Start, array: Array, key: str, *, drop_empty: bool) -> list[Splice]:
    """Remove the guard and the server's program, which moves back to the command, from the arguments."""
    member = start.holder.member(key)
    if start.guard < len(array.children) or member is None:
        return without(document, array, range(start.guard))
    if array.is_block:
        splice = emptied_block(document, array, member)
        has_comments = "#" in splice.text
    else:
        (splice,) = without(document, array, range(start.guard))
        beside = document.text[member.key_end : array.start].strip(" \t\r\n:=")
        has_comments = bool((beside + document.text[array.start + 1 : splice.start] + splice.text).strip())
    return (drop_empty and not has_comments and without_member(document, start.holder, member)) or [splice]


def _starts(document: Document, edits: Collection[EntryEdit]) -> dict[EntryEdit, Start]:
    """The places of the commands that are edited.

    Raises:
        LookupError: There is no stdio server of this name.
    """
    servers = {layout: dict(servers_of(document, layout)) for layout in {edit.layout for edit in edits}}
    found: dict[EntryEdit, Start] = {}
    for edit in edits:
        node = servers[edit.layout].get(edit.name)
        start = start_of(document, edit.layout, node) if isinstance(node, Object) else None
        if not isinstance(start, Start):
            raise LookupError(edit.name)
        found[edit] = start
    return found


def _fault(document: Document, starts: Mapping[EntryEdit, Start]) -> Unreadable | None:
    """Why edits would not have the intended effect, or have another one; None if all is well."""
    try:
        new = _after(document, starts)
    except Unreadable as error:
        return error
    with contextlib.suppress(Unreadable, LookupError):
        after = read(new, document.dialect)
        now = _starts(after, starts)
        is_done = all(now[edit].words == _words_after(edit, start) for edit, start in starts.items())
        if is_done and _rest(after, now) == _rest(document, starts) and _can_be_undone(document, starts, after, now):
            return None
    return _uneditable(document, starts)


def _words_after(edit: EntryEdit, start: Start) -> tuple[str, ...]:
    if edit.guard and start.guard:
        return (edit.guard[0], *start.words[1:])
    return (*edit.guard, *start.words[start.guard :])


def _can_be_undone(
    document: Document, starts: Mapping[EntryEdit, Start], after: Document, now: Mapping[EntryEdit, Start]
) -> bool:
    """Whether the opposite edits give the old file back. A removal need not be undone."""
    splices: list[Splice] = []
    for edit, start in starts.items():
        if not edit.guard:
            return True
        if start.guard:
            old, new = start.program, now[edit].program
            splices.append(Splice(new.start, new.end, document.text[old.start : old.end]))
        else:
            splices += _removal(after, now[edit], edit.layout, drop_empty=start.args is None)
    return spliced(after.text, splices) == document.text


def _uneditable(document: Document, starts: Mapping[EntryEdit, Start]) -> Unreadable:
    names = ", ".join(edit.name for edit in starts)
    what = f"the server{'s' if len(starts) > 1 else ''} {names} cannot be edited in place"
    return document.unreadable(what, min(start.command.start for start in starts.values()))


def _rest(document: Document, starts: Mapping[EntryEdit, Start]) -> Any:
    """The values of a document without the commands and the arguments of servers."""
    keys = [(start, key) for edit, start in starts.items() for key in (edit.layout.command, edit.layout.args) if key]
    return plain(document.root, {id(start.holder.member(key)) for start, key in keys})
