"""Edits of one server, which fail with the reason if they cannot be made."""

from collections.abc import Sequence

from mcpguard.clients.entries import EntryEdit, Layout, edited, entries
from mcpguard.documents.document import Dialect


def guarded(data: bytes, layout: Layout, dialect: Dialect, name: str, words: Sequence[str]) -> bytes:
    """A server starts through mcpguard. A guarded one stays as it is."""
    return data if guard_of(data, layout, dialect, name) else edit(data, dialect, EntryEdit(layout, name, tuple(words)))


def unguarded(data: bytes, layout: Layout, dialect: Dialect, name: str, *, drop_empty_args: bool = False) -> bytes:
    """A server starts without mcpguard."""
    return edit(data, dialect, EntryEdit(layout, name, drop_empty_args=drop_empty_args))


def reguarded(data: bytes, layout: Layout, dialect: Dialect, name: str, program: str) -> bytes:
    """A guarded server starts through another mcpguard. One that is not guarded stays as it is."""
    guard = guard_of(data, layout, dialect, name)
    return edit(data, dialect, EntryEdit(layout, name, (program, *guard[1:]) if guard else ()))


def guard_of(data: bytes, layout: Layout, dialect: Dialect, name: str) -> tuple[str, ...]:
    """The words before a server's command; none if it is not guarded."""
    return next((entry.guard or () for entry in entries(data, layout, dialect) if entry.name == name and entry.words), ())


def edit(data: bytes, dialect: Dialect, wanted: EntryEdit) -> bytes:
    made = edited(data, dialect, [wanted])
    for fault in made.faults:
        raise fault
    return made.data
