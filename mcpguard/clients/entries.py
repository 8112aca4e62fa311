"""Reads the servers in a client's file."""

import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from mcpguard import run_options
from mcpguard.documents.document import Dialect, Document, is_blank, read
from mcpguard.documents.model import Array, Child, Node, Object, Opaque, Scalar, plain
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
