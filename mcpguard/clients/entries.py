"""Reads the servers in a client's file, and edits them: inserts `mcpguard run` before a server's command, or deletes it.

All edits of a file are made at once, and then checked at once.
"""

import contextlib
import re
from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType

from mcpguard import run_options
from mcpguard.documents.document import (
    Dialect,
    Document,
    Splice,
    emptied_block,
    is_blank,
    member_after,
    prepended,
    quoted,
    read,
    spliced,
    without,
    without_member,
)
from mcpguard.documents.model import Array, Child, Node, Object, Opaque, Scalar, Unreadable, plain
from mcpguard.light_typing import Any, Final, NamedTuple

URLS: Final = ("url", "serverUrl", "httpUrl", "uri")
"""The members that have the address of a remote server."""

ENV: Final = ("env", "environment", "envs")
"""The members that have the variables of a server."""

_STDIO: Final = ("", "stdio", "local")
_BUNDLED: Final = ("builtin", "platform", "frontend", "inline_python")
"""Goose's types of extensions that run without a command."""

_OPAQUE: Final = "it has a YAML anchor, alias, tag or merge key; write it out, because mcpguard does not edit these"


class Layout(NamedTuple):
    """Where a client keeps its servers, and how it describes a server.

    Attributes:
        path: The names of the objects that lead to the servers.
        is_list: Whether the servers are a list, in which each has a `name`.
        command: The member that has the program.
        args: The member that has the arguments; None if `command` is an array of the program and its arguments.
        nested: The member with an object in which the command may be instead.
        is_single: Whether there is one server, which has the name of the whole file.
    """

    path: tuple[str, ...]
    is_list: bool = False
    command: str = "command"
    args: str | None = "args"
    nested: str | None = None
    is_single: bool = False


class Entry(NamedTuple):
    """A server in a client's file.

    Attributes:
        name: Its name; empty if a list has an entry without a name.
        kind: `stdio`, `remote`, `disabled`, `bundled` (without a command, because the client brings the server), or `faulty`.
        words: The command and its arguments, with the client's variables as the file has them. Empty unless the kind is
            `stdio` or `disabled`.
        guard: If it starts through `mcpguard run`, the words before the server's command; else None.
        is_sandboxed: Whether VS Code runs it in a sandbox.
        detail: The URL of a remote entry; what is wrong with a faulty one.
        env: The variables that it sets for the server.
        cwd: The folder in which it starts; empty for the client's choice.
        may_start: Whether a faulty entry has a command, which its client may be able to start.
        env_file: A file with more variables, which its client reads; empty if there is none.
        has_args: Whether its arguments have a member, if it has a command.
    """

    name: str
    kind: str
    words: tuple[str, ...] = ()
    guard: tuple[str, ...] | None = None
    is_sandboxed: bool = False
    detail: str = ""
    env: Mapping[str, str] = MappingProxyType({})
    cwd: str = ""
    may_start: bool = False
    env_file: str = ""
    has_args: bool = True

    @property
    def own_words(self) -> tuple[str, ...]:
        """The server's own command and its arguments."""
        return self.words[len(self.guard or ()) :]

    @property
    def starts_mcpguard(self) -> bool:
        """Whether it starts mcpguard, perhaps through `uvx` or `sh -c`. Another guard would count its calls twice."""
        return run_options.starts_run(" ".join(self.words))


class Start(NamedTuple):
    """The places of an entry's command.

    Attributes:
        holder: The object with the command: the entry, or the nested object.
        command: The member with the command.
        args: The array to whose head an edit inserts; None if the entry has no arguments.
        words: The command and its arguments.
        guard: The number of words before the server's command; 0 if it is not guarded.
    """

    holder: Object
    command: Child
    args: Array | None
    words: tuple[str, ...]
    guard: int

    @property
    def program(self) -> Node:
        """The first word."""
        node = self.command.node
        return node.children[0].node if isinstance(node, Array) else node


def entries(data: bytes, layout: Layout, dialect: Dialect) -> list[Entry]:
    """The servers in a file; none if the file is blank. If several have one name, the last counts, as for the client.

    Raises:
        Unreadable: The file does not parse in this dialect.
    """
    if is_blank(data):
        return []
    document = read(data, dialect)
    servers = servers_of(document, layout)
    last = dict(servers)
    return [
        _entry(document, layout, name, node)
        if node is last[name]
        else Entry(name, "faulty", detail="a later server has the same name" if name else "it has no name")
        for name, node in servers
        if node is last[name] or layout.is_list
    ]


def servers_of(document: Document, layout: Layout) -> list[tuple[str, Node]]:
    """The servers and their names, which can occur twice."""
    node: Node | None = document.root
    for name in layout.path:
        node = node.get(name) if isinstance(node, Object) else None
        if isinstance(node, Opaque):
            raise document.unreadable(f"{name}: {_OPAQUE}", node.start)
    if layout.is_single:
        return [(_text(plain(document.root), "name"), node)] if node else []
    if layout.is_list:
        items = node.children if isinstance(node, Array) else []
        return [(_text(plain(child.node), "name"), child.node) for child in items]
    return [(child.key, child.node) for child in node.children] if isinstance(node, Object) else []


def _text(value: Any, key: str) -> str:
    """A member that is a text; empty if there is none."""
    found = value.get(key) if isinstance(value, dict) else None
    return found if isinstance(found, str) else ""


def holder_of(node: Object, layout: Layout) -> Object:
    """The object with the command: the entry, or the nested object."""
    nested = node.get(layout.nested) if layout.nested else None
    return nested if isinstance(nested, Object) else node


def _entry(document: Document, layout: Layout, name: str, node: Node) -> Entry:
    if not isinstance(node, Object):
        if isinstance(node, Opaque):
            return Entry(name, "faulty", detail=_OPAQUE, may_start=True)
        return Entry(name, "faulty", detail="it is not an object")
    whole, values = plain(node), plain(holder_of(node, layout))
    is_disabled = whole.get("disabled") is True or whole.get("enabled") is False
    kind, detail = _without_command(values, layout)
    start = None if kind else start_of(document, layout, node)
    if isinstance(start, str):
        kind, detail = "faulty", start
    found = start if isinstance(start, Start) else None
    tables = [table for table in (values.get(key) for key in ENV) if isinstance(table, dict)]
    return Entry(
        name,
        "disabled" if is_disabled else kind or "stdio",
        found.words if found else (),
        found.words[: found.guard] if found and found.guard else None,
        is_sandboxed=whole.get("sandboxEnabled") is True,
        detail=detail,
        env={key: value for table in tables for key, value in table.items() if isinstance(value, str)},
        cwd=_text(values, "cwd"),
        may_start=kind == "faulty" and not is_disabled and (detail == _OPAQUE or bool(values.get(layout.command))),
        env_file=_text(values, "envFile"),
        has_args=not found or found.args is not None,
    )


def _without_command(values: Mapping[str, Any], layout: Layout) -> tuple[str, str]:
    """The kind and the detail of an entry that starts no command; empty for all others."""
    url = next((url for url in (_text(values, key) for key in URLS) if url), "")
    kind = _text(values, "type")
    if not values.get(layout.command):
        if url:
            return "remote", url
        if kind in _BUNDLED or _text(values, "source") == "extension" or "settings" in values:
            return "bundled", ""
    elif url and kind not in _STDIO:
        return "remote", url
    return "", ""


def start_of(document: Document, layout: Layout, node: Object) -> Start | str:
    """The places of an entry's command, or what is wrong with it."""
    holder = holder_of(node, layout)
    command = holder.member(layout.command)
    args = holder.get(layout.args) if layout.args else None
    if command is None:
        nested = node.get(layout.nested) if layout.nested else None
        return _OPAQUE if isinstance(nested, Opaque) else f"it has no {layout.command}"
    array = command.node if layout.args is None else args
    parts = [command.node] if layout.args else []
    if isinstance(array, Array):
        parts += [child.node for child in array.children]
    elif array is not None:
        return _OPAQUE if isinstance(array, Opaque) else f"its {layout.args or layout.command} is not an array"
    words = tuple(part.value for part in parts if isinstance(part, Scalar) and isinstance(part.value, str))
    if len(words) < len(parts):
        is_opaque = any(isinstance(part, Opaque) for part in parts)
        return _OPAQUE if is_opaque else f"its {layout.command} or an argument of it is not a text"
    if not words or not words[0]:
        return f"its {layout.command} is empty"
    guard = _guard(words)
    if guard == len(words):
        return "it starts mcpguard run without a server's command"
    start = Start(holder, command, array, words, guard)
    return _immovable(document, start, parts[guard]) or start


def _guard(words: Sequence[str]) -> int:
    """The number of words that belong to mcpguard; 0 if the command is not `mcpguard run`."""
    program = re.split(r"[\\/]", words[0])[-1].lower()
    if program not in ("mcpguard", "mcpguard.exe") or words[1:2] != ("run",):
        return 0
    parsed = run_options.parse(words[1:])
    if parsed is not None:
        return len(words) - len(parsed["argv"])
    return words.index("--") + 1 if "--" in words else len(words)  # options of another version


def _immovable(document: Document, start: Start, node: Node) -> str:
    """Why a YAML token cannot be moved between the command and the arguments; empty if it can."""
    if document.dialect is not Dialect.YAML:
        return ""
    token = document.text[node.start : node.end]
    if "\n" in token:
        return "its command is written on several lines; write it on one"
    is_flow = start.args is None or not start.args.is_block
    if is_flow and token[0] not in "\"'" and re.search(r"[,\[\]{}]", token):
        return "its command has brackets or commas; put it in quotes"
    return ""


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
