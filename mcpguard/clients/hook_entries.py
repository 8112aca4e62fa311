"""Adds a hook to a client's JSON file of hooks, and removes it, in place: a removal restores what was there before."""

import codecs
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from mcpguard.clients.documents import Dialect, Document, encoded, is_blank, quoted, read
from mcpguard.clients.edits import without_child
from mcpguard.clients.nodes import Array, Node, Object, Scalar, Splice, Unreadable, plain

_OURS: Final = re.compile(r"""(?:^|[\\/\s"'])mcpguard(?:\.exe)?["']?\s+hook(?:\s|$)""", re.IGNORECASE)
_COMMANDS: Final = ("command", "bash", "powershell")
"""The members of a hook that can have its command line."""


class _Hook(NamedTuple):
    """A hook of mcpguard in a file.

    Attributes:
        command: Its command line.
        chain: The containers around it, from the outermost, each with the place of the next one in it.
    """

    command: str
    chain: Sequence[tuple[Array | Object, int]]


def hook_commands(data: bytes, event: str) -> list[str]:
    """The command lines of mcpguard's hooks for an event.

    Raises:
        Unreadable: The file is not JSON.
    """
    return [] if is_blank(data) else [hook.command for hook in _hooks(read(data, Dialect.JSON).root, event)]


def with_hook(data: bytes, event: str, entry: Mapping[str, Any], *, version: int | None = None) -> bytes:
    """Add a hook of mcpguard, in place of the one that is there. `without_hook` removes it.

    Args:
        data: The file; empty if it does not exist.
        event: The client's name for the event.
        entry: The hook: for Claude Code and Codex a matcher with a list of hooks, for Copilot CLI the hook itself.
        version: The `version` that a new file gets; None for a file that has none.

    Raises:
        Unreadable: The file is not JSON, or cannot be edited in place.
    """
    data = without_hook(data, event)
    if is_blank(data):
        head = {} if version is None else {"version": version}
        made = encoded(_new_file(head | {"hooks": {event: [dict(entry)]}}))
        mark = data[: len(data) - len(data.removeprefix(codecs.BOM_UTF8))]
        return mark + made + data.removeprefix(mark)
    document = read(data, Dialect.JSON)
    new = document.after([_added(document, event, dict(entry))])
    if without_hook(new, event) != data:
        raise Unreadable("the hook cannot be added in place")
    return new


def with_commands(data: bytes, event: str, new: Mapping[str, str]) -> bytes:
    """Replace command lines of hooks. Everything else in the file stays as it is.

    Args:
        data: The file.
        event: The client's name for the event.
        new: The new command line for each one that is replaced.

    Raises:
        Unreadable: The file is not JSON.
    """
    document = read(data, Dialect.JSON)
    hooks = document.root.get("hooks") if isinstance(document.root, Object) else None
    lines = _lines(hooks.get(event) if isinstance(hooks, Object) else None)
    found = [(line, new.get(str(line.value))) for line in lines]
    return document.after(Splice(line.start, line.end, quoted(text)) for line, text in found if text)


def without_hook(data: bytes, event: str) -> bytes:
    """Remove the hooks of mcpguard for an event, and what `with_hook` has added for them.

    Returns:
        The file; empty if `with_hook` has made it.

    Raises:
        Unreadable: The file is not JSON, or cannot be edited in place.
    """
    if is_blank(data):
        return data
    document = read(data, Dialect.JSON)
    if (rest := _after_new_file(document, event)) is not None:
        return rest
    new = document.after(_removals(document, list(_hooks(document.root, event))))
    after = read(new, Dialect.JSON).root
    if any(_hooks(after, event)) or _others(after, event) != _others(document.root, event):
        raise Unreadable("the hook cannot be removed in place")
    return new


def _lines(node: Node | None) -> Iterator[Scalar]:
    """The command lines in the entries of an event."""
    if isinstance(node, Array):
        for item in node.items:
            yield from _lines(item)
    elif isinstance(node, Object):
        for member in node.members:
            if member.key in _COMMANDS and isinstance(member.node, Scalar):
                yield member.node
            else:
                yield from _lines(member.node)


def _command(hook: Any) -> str:
    """The command line of a hook of mcpguard; empty for all other hooks."""
    texts = [hook.get(key) for key in _COMMANDS] if isinstance(hook, dict) else []
    return next((text for text in texts if isinstance(text, str) and _OURS.search(text)), "")


def _inner(entry: Any) -> list[Any]:
    """The hooks of an entry that has a matcher and a list of hooks."""
    hooks = entry.get("hooks") if isinstance(entry, dict) else None
    return hooks if isinstance(hooks, list) else []


def _parted(root: Node, event: str) -> tuple[dict[str, Any], dict[str, Any], list[Any]]:
    """The values of a file: all members but `hooks`, the other events, and the entries of the event."""
    value = plain(root)
    others = value if isinstance(value, dict) else {}
    hooks = others.pop("hooks", {})
    hooks = hooks if isinstance(hooks, dict) else {}
    entries = hooks.pop(event, [])
    return others, hooks, entries if isinstance(entries, list) else []


def _others(root: Node, event: str) -> tuple[dict[str, Any], dict[str, Any], list[Any]]:
    """The values of a file without mcpguard's hooks."""
    others, events, entries = _parted(root, event)
    kept: list[Any] = []
    for entry in entries:
        inner = [hook for hook in _inner(entry) if not _command(hook)]
        if inner and len(inner) < len(_inner(entry)):
            kept.append(entry | {"hooks": inner})
        elif not _command(entry) and (inner or not _inner(entry)):
            kept.append(entry)
    return others, events, kept


def _hooks(root: Node, event: str) -> Iterator[_Hook]:
    """The hooks of mcpguard."""
    chain: list[tuple[Array | Object, int]] = []
    node = root
    for key in ("hooks", event):
        member = node.member(key) if isinstance(node, Object) else None
        if member is None or not isinstance(node, Object):
            return
        chain.append((node, node.members.index(member)))
        node = member.node
    if not isinstance(node, Array):
        return
    for at, item in enumerate(node.items):
        entry = plain(item)
        commands = [_command(hook) for hook in _inner(entry)]
        around = [*chain, (node, at)]
        if command := _command(entry) or (commands[0] if all(commands) and commands else ""):
            yield _Hook(command, around)
            continue
        inner = item.get("hooks") if isinstance(item, Object) else None
        if isinstance(inner, Array):
            yield from (_Hook(command, [*around, (inner, place)]) for place, command in enumerate(commands) if command)


def _removals(document: Document, hooks: Sequence[_Hook]) -> Iterator[Splice]:
    """Remove hooks, and each container around them that has nothing else and that `with_hook` has made."""
    chains = {id(hook.chain[-1][0]): list(hook.chain) for hook in hooks}
    removed: dict[int, set[int]] = {}
    for hook in hooks:
        container, at = hook.chain[-1]
        removed.setdefault(id(container), set()).add(at)
    for key, chain in chains.items():
        container, _ = chain.pop()
        places = removed[key]
        while chain and _is_made(document, container, places):
            container, at = chain.pop()
            places = {at}
        spans: list[tuple[int, int]] = []
        gone: list[int] = []
        for at, (start, end) in enumerate(_spans(container)):
            if at in places and at - 1 in places:  # neighbours that are removed count as one
                spans[-1] = (spans[-1][0], end)
                continue
            if at in places:
                gone.append(len(spans))
            spans.append((start, end))
        yield from (without_child(document, container, spans, at) for at in gone)


def _is_made(document: Document, container: Array | Object, places: set[int]) -> bool:
    """Whether `with_hook` has made a container, of which it removes what is in these places, and nothing was added.

    It puts white space after the bracket of such a one.
    """
    spans = _spans(container)
    before = document.text[container.start + 1 : spans[0][0]]
    after = document.text[spans[-1][1] : container.end - 1]
    return len(spans) == len(places) and before != "" and not (before + after).strip()


def _spans(container: Array | Object) -> list[tuple[int, int]]:
    if isinstance(container, Object):
        return [(member.start, member.node.end) for member in container.members]
    return [(item.start, item.end) for item in container.items]


def _added(document: Document, event: str, entry: dict[str, Any]) -> Splice:
    """Insert a hook, with the containers that are missing."""
    root = document.root
    if not isinstance(root, Object):
        raise document.unreadable("the file is not an object", root.start)
    hooks = root.get("hooks")
    if hooks is None:
        return _appended(document, root, {event: [entry]}, "hooks")
    if not isinstance(hooks, Object):
        raise document.unreadable("hooks is not an object", hooks.start)
    entries = hooks.get(event)
    if entries is None:
        return _appended(document, hooks, [entry], event)
    if not isinstance(entries, Array):
        raise document.unreadable(f"{event} is not an array", entries.start)
    return _appended(document, entries, entry)


def _appended(document: Document, container: Array | Object, value: Any, key: str | None = None) -> Splice:
    """Insert an item or a member after the last one, in the style of the file."""
    name = "" if key is None else f"{json.dumps(key)}: "
    spans = _spans(container)
    if not spans:
        return Splice(container.start + 1, container.start + 1, name + _on_one_line(value))
    end = spans[-1][1]
    if "\n" not in document.text[container.start : spans[0][0]]:
        return Splice(end, end, f", {name}{_on_one_line(value)}")
    gap = document.line_break(spans[-1][0]) + document.indentation(spans[0][0])
    text = json.dumps(value, indent=_unit(document), ensure_ascii=False).replace("\n", gap)
    return Splice(end, end, f",{gap}{name}{text}")


def _unit(document: Document) -> str:
    """The indentation of the file's first member."""
    spans = _spans(document.root) if isinstance(document.root, Object) else []
    return (document.indentation(spans[0][0]) if spans else "") or "  "


def _on_one_line(value: Any) -> str:
    """JSON on one line, with a space inside each bracket."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{json.dumps(key)}: {_on_one_line(item)}" for key, item in value.items()) + " }"
    if isinstance(value, list):
        return "[ " + ", ".join(_on_one_line(item) for item in value) + " ]"
    return json.dumps(value, ensure_ascii=False)


def _new_file(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def _after_new_file(document: Document, event: str) -> bytes | None:
    """What follows a file that `with_hook` has made; None if it has not made this one, or if somebody has edited it."""
    others, events, kept = _others(document.root, event)
    if others.keys() - {"version"} or events or kept or not any(_hooks(document.root, event)):
        return None
    try:
        value = json.loads(document.text)  # unlike `plain`, it leaves integers as they are
    except ValueError:
        return None
    whole = _new_file(value)
    rest = document.text.removeprefix(whole)
    return document.mark + rest.encode() if document.text.startswith(whole) and not rest.strip() else None
