"""The hooks of clients: what `install` adds to a JSON file of hooks in place, and how a removal restores the file."""

import codecs
import contextlib
import itertools
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from mcpguard.clients.catalog import COMMAND, SHELL, Client, Event, Hook
from mcpguard.clients.discovery import Fault, Machine, hook_file, may_exist, read, unreadable
from mcpguard.clients.guards import Guard, Guards
from mcpguard.clients.launcher import Launcher, is_same, may_vary, program_of, words_of
from mcpguard.clients.plan import HookOutcome, Plan
from mcpguard.documents.document import Dialect, Document, Splice, encoded, is_blank, quoted
from mcpguard.documents.document import read as parsed
from mcpguard.documents.edits import appended, removed
from mcpguard.documents.model import Array, Container, Node, Object, Scalar, Unreadable, plain
from mcpguard.light_typing import Any, Final, NamedTuple

DECIDES: Final = "--enforce"
"""The option that makes a hook decide."""

_ONE_COMMAND: Final = re.compile(r"(?:& )?[^;|&`$()<>\n]*")
"""A command line that starts one program. PowerShell needs the `&` for a path in quotes."""

_OURS: Final = re.compile(r"""(?:^|[\\/\s"'])mcpguard(?:\.exe)?["']?\s+hook(?:\s|$)""", re.IGNORECASE)
_COMMANDS: Final = ("command", "bash", "powershell")
"""The members of a hook that can have its command line."""


class Ours(NamedTuple):
    """A hook of mcpguard in a client's file.

    Attributes:
        event: Its event.
        places: The index of its entry for the event, and its own in the entry.
        entry: The entry.
        handler: The hook in it, or the entry itself.
        command: Its command line.
    """

    event: str
    places: tuple[int, int]
    entry: dict[str, Any]
    handler: dict[str, Any]
    command: str


def ours(file: Path, hook: Hook) -> list[Ours]:
    """The hooks of mcpguard in a client's file. A missing file has none.

    Raises:
        Fault: The file cannot be read.
    """
    data = read(file) if may_exist(file) else b""
    try:
        value = {} if is_blank(data) else plain(parsed(data, hook.dialect).root)
    except Unreadable as error:
        raise unreadable(file, error) from error
    events = value.get("hooks") if isinstance(value, dict) else None
    lists = [(event, events.get(event)) for event in hook.names] if isinstance(events, dict) else []
    entries = [
        (event, group, one) for event, entries in lists if isinstance(entries, list) for group, one in enumerate(entries)
    ]
    return [
        Ours(event, (group, at), entry, handler, text)
        for event, group, entry in entries
        for at, handler in enumerate(handlers(entry))
        if (text := next((text for key in _COMMANDS if _OURS.search(text := str(handler.get(key)))), ""))
    ]


def deciding(machine: Machine, client: Client, project: Path | None) -> list[Ours]:
    """The deciding hooks in a file of the account or a project, for the event that shows the calls of servers.

    Raises:
        Fault: The file cannot be read.
    """
    hook = client.hook
    found = ours(hook_file(machine, hook, project), hook) if hook else []
    return [one for one in found if hook and one.event == hook.deciding.name and decides(one.command)]


def commands_in(file: Path, hook: Hook) -> list[str]:
    """The command lines of mcpguard's hooks in a client's file: see `ours`."""
    return list(dict.fromkeys(one.command for one in ours(file, hook)))


def guard_of(command: str, guards: Guards, project: Path | None) -> Guard:
    """The mcpguard of a hook's command line.

    A path with a variable is known only to the client. So is a name after another command, such as `uvx`, which finds it. A
    project's command line is not known if a shell could start something else, too.

    Args:
        command: The command line.
        guards: Examines its mcpguard.
        project: The project whose file has it; None for a file of the account.
    """
    program = program_of(command)
    before = list(itertools.takewhile(lambda word: word != program, words_of(command)))
    is_found_by_another = os.path.basename(program) == program and any("=" not in word for word in before)  # noqa: PTH119
    start = None if is_found_by_another or may_vary(program) else project or Path()
    found = guards.examine(os.path.expanduser(program), start, is_of_project=project is not None)  # noqa: PTH111
    if project and found.state == "known" and (before or not _ONE_COMMAND.fullmatch(command)):
        return Guard("unseen", "its command line may start more than mcpguard")
    return found


def plan_hooks(
    plan: Plan, machine: Machine, clients: Iterable[Client], project: Path | None, launcher: Launcher | None,
    *, decide: bool = False, fail_closed: bool = False,
) -> None:  # fmt: skip
    """Plan to add the hooks of clients, or to remove them, with files that hold nothing else.

    A hook that is there stays. If its mcpguard is gone, it gets the path of this one. A hook that leaves notes becomes the
    deciding one in its place, because a client may have trusted the hooks after it by their places.

    Args:
        plan: The plan.
        machine: The account.
        clients: The clients. A client without a hook is ignored.
        project: The project whose files are changed; None for the account's.
        launcher: The command to write; None to remove hooks.
        decide: Whether to add the hooks that decide, not those that only leave notes.
        fail_closed: Whether a client denies if the hook fails, where it can.
    """
    guards = Guards(os.environ)
    for client in clients:
        hook = client.hook
        if hook is None or not (launcher is None or decide or hook.leaves_notes):
            continue
        file = hook_file(machine, hook, project)
        with plan.noting_faults(file):
            if decide and launcher and (other := _decides_elsewhere(machine, client, project, file)):
                hint = "one is enough; to have it here, remove it there first"
                raise Fault(f"{file}: no hook is added: {other} has a deciding one, and calls would count twice", hint)
            data = plan.content(file)
            commands = dict.fromkeys(command for event in hook.names for command in hook_commands(data, event, hook.dialect))
            if launcher is not None:
                found = {command: guard_of(command, guards, project) for command in commands}
                plan.hooks.append(_added_to(plan, client, hook, file, found, launcher, decide=decide, fail_closed=fail_closed))
            elif commands:
                new = without_hook(data, *hook.names, dialect=hook.dialect)
                plan.put(file, b"" if new is None and file.is_symlink() else new, hook.dialect)
                plan.hooks.append(HookOutcome(client, file, "the hook was removed", client.after))


def _decides_elsewhere(machine: Machine, client: Client, project: Path | None, file: Path) -> Path | None:
    """The account's file with a deciding hook, if a project's is changed, or that of the project in the working folder."""
    assert client.hook  # noqa: S101 - see the caller
    with contextlib.suppress(Fault):  # the client cannot read the file either
        place = None if project else machine.project
        other = hook_file(machine, client.hook, place)
        return other if deciding(machine, client, place) and not is_same(other, file) else None
    return None


def _added_to(
    plan: Plan, client: Client, hook: Hook, file: Path, found: Mapping[str, Guard], launcher: Launcher,
    *, decide: bool, fail_closed: bool,
) -> HookOutcome:  # fmt: skip
    """Plan to add a hook to a file with these command lines of mcpguard's, or to mend them."""
    if unsafe := [guard for guard in found.values() if guard.state == "unsafe" and not guard.is_gone]:
        hint = f"write {launcher.program} in its place in the file"
        raise Fault(f"{file}: the hook is not changed: {unsafe[0].fault}", hint)
    mended = {command: launcher.hook(client.key, command) for command, guard in found.items() if guard.is_gone}
    old = plan.content(file) if may_exist(file) else None
    new, are_there = old, bool(found) and not decide
    for event in hook.events:
        if new is not None and hook_commands(new, event.name, hook.dialect):
            new = with_commands(new, event.name, mended, hook.dialect)
            if decide and event.decides:
                new = _deciding(new, file, event, client, launcher, fail_closed=fail_closed)
        elif decide or (event.note and not are_there):
            command = launcher.hook(client.key, decides=decide and event.decides)
            form = event.form if decide else event.note
            entry = filled(form, command, event.closed if decide and fail_closed else "{}")
            new = with_hook(new, event.name, entry, version=hook.version, dialect=hook.dialect)
    if new == old:
        return HookOutcome(client, file, "the hook is there already")
    assert new is not None  # noqa: S101 - every hook has an event
    plan.put(file, new, hook.dialect)
    text = "the hook's mcpguard is this one now" if mended else "the hook was added"
    if decide:
        misses = f", but not {hook.misses}" if hook.misses else ""
        done = "the hook decides now" if found else "the deciding hook was added"
        text = f"{done}: it limits calls of built-in tools and of all MCP servers{misses}"
    return HookOutcome(client, file, text, hook.after or client.after)


def filled(form: str, command: str, closed: str = "{}") -> dict[str, Any]:
    """A hook in the client's form, with `closed` beside its command line."""
    shell = "powershell" if sys.platform == "win32" else "bash"
    entry: dict[str, Any] = json.loads(form.replace(json.dumps(COMMAND), json.dumps(command)).replace(SHELL, shell))
    for handler in handlers(entry):
        handler.update(json.loads(closed))
    return entry


def handlers(entry: Any) -> list[dict[str, Any]]:
    """What has the command lines of an entry: its hooks, or the entry itself."""
    found = entry.get("hooks", [entry]) if isinstance(entry, dict) else None
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []


def _deciding(data: bytes, file: Path, event: Event, client: Client, launcher: Launcher, *, fail_closed: bool) -> bytes:
    """Make the hook of an event the deciding one, in its place.

    Raises:
        Fault: There are several, or it shares its entry with other hooks.
    """
    assert client.hook  # noqa: S101 - see the caller
    document, closed = parsed(data, client.hook.dialect), event.closed if fail_closed else "{}"
    (node, lines), *others = _hooks(document.root, event.name)
    parts = [{key: one[key] for key in json.loads(event.closed) if key in one} for one in handlers(plain(node))]
    is_done = all(part == json.loads(closed) for part in parts) and all(decides(str(line.value)) for line in lines)
    if is_done and not others:
        return data
    entries = _entries(document.root, event.name)
    if others or not isinstance(entries, Array) or node not in [child.node for child in entries.children]:
        hint = "leave one hook of mcpguard in the file, in an entry of its own, then run this again"
        raise Fault(f"{file}: the hook is not changed: it is there more than once, or beside other hooks", hint)
    entry = filled(event.form, launcher.hook(client.key, str(lines[0].value), decides=True), closed)
    text = json.dumps(entry, indent=_unit(document), ensure_ascii=False)
    gap = document.line_break(node.start) + document.indentation(node.start)
    is_long = "\n" in document.text[node.start : node.end]
    return document.after([Splice(node.start, node.end, text.replace("\n", gap) if is_long else re.sub(r"\n\s*", " ", text))])


def decides(command: str) -> bool:
    """Whether a command line is that of a deciding hook."""
    return DECIDES in words_of(command)


def hook_commands(data: bytes, event: str, dialect: Dialect = Dialect.JSON) -> list[str]:
    """The command lines of mcpguard's hooks for an event.

    Raises:
        Unreadable: The file is not JSON.
    """
    return [] if is_blank(data) else [str(lines[0].value) for _, lines in _hooks(parsed(data, dialect).root, event)]


def with_hook(
    data: bytes | None, event: str, entry: Mapping[str, Any], *, version: int | None = None, dialect: Dialect = Dialect.JSON
) -> bytes:
    """Add a hook of mcpguard, in place of the one that is there. `without_hook` removes it.

    Args:
        data: The file; None if it does not exist.
        event: The client's name for the event.
        entry: The hook: for Claude Code and Codex a matcher with a list of hooks, for Copilot CLI the hook itself.
        version: The `version` that a new file gets; None for a file that has none.
        dialect: What the client can read.

    Raises:
        Unreadable: The file is not JSON, or cannot be edited in place.
    """
    old = data and without_hook(data, event, dialect=dialect)
    if old is None or is_blank(old):
        head = {} if version is None else {"version": version}
        made = encoded(_new_file(head | {"hooks": {event: [dict(entry)]}}))
        if old is None:
            return made
        mark = old[: len(old) - len(old.removeprefix(codecs.BOM_UTF8))]
        return mark + made + _THERE.encode() + old.removeprefix(mark)
    document = parsed(old, dialect)
    new = document.after([_added(document, event, dict(entry))])
    if without_hook(new, event, dialect=dialect) != old:
        raise Unreadable("the hook cannot be added in place")
    return new


def with_commands(data: bytes, event: str, new: Mapping[str, str], dialect: Dialect) -> bytes:
    """Replace command lines of hooks. Everything else in the file stays as it is.

    Args:
        data: The file.
        event: The client's name for the event.
        new: The new command line for each one that is replaced.
        dialect: What the client can read.

    Raises:
        Unreadable: The file is not JSON.
    """
    document = parsed(data, dialect)
    lines = [line for _, lines in _hooks(document.root, event) for line in lines]
    return document.after(Splice(line.start, line.end, quoted(new[text])) for line in lines if (text := str(line.value)) in new)


def without_hook(data: bytes, *events: str, dialect: Dialect = Dialect.JSON) -> bytes | None:
    """Remove the hooks of mcpguard for events, and what `with_hook` has added for them.

    Returns:
        The file; None if `with_hook` has made it.

    Raises:
        Unreadable: The file is not JSON, or cannot be edited in place.
    """
    if is_blank(data):
        return data
    document = parsed(data, dialect)
    hooks = [hook for event in events for hook, _ in _hooks(document.root, event)]
    after = _after_new_file(document, events, hooks) if hooks else None
    if after is None:
        return removed(document, hooks)
    return document.mark + after.removeprefix(_THERE).encode() if after else None


def _entries(root: Node, event: str) -> Node | None:
    return root.get("hooks", event) if isinstance(root, Object) else None


def _hooks(root: Node, event: str) -> Iterator[tuple[Node, list[Scalar]]]:
    """The hooks of mcpguard, each with its command lines. An entry in which all hooks are mcpguard's counts as one."""
    entries = _entries(root, event)
    for entry in entries.children if isinstance(entries, Array) else ():
        inner = entry.node.get("hooks") if isinstance(entry.node, Object) else None
        hooks = inner.children if isinstance(inner, Array) else []
        ours = [(hook.node, lines) for hook in hooks if (lines := _lines(hook.node))]
        whole = _lines(entry.node) or [line for _, lines in ours for line in lines if len(ours) == len(hooks)]
        yield from [(entry.node, whole)] if whole else ours


def _lines(hook: Node) -> list[Scalar]:
    """The command lines of a hook of mcpguard; none of all other hooks."""
    texts = [hook.get(key) for key in _COMMANDS] if isinstance(hook, Object) else []
    return [text for text in texts if isinstance(text, Scalar) and isinstance(text.value, str) and _OURS.search(text.value)]


def _added(document: Document, event: str, entry: dict[str, Any]) -> Splice:
    """Insert a hook, with the containers that are missing."""
    node, missing = document.root, ["hooks", event]
    while missing and isinstance(node, Object) and (found := node.get(missing[0])):
        node = found
        missing.pop(0)
    if not isinstance(node, Object if missing else Array):
        what = ("the file", "hooks", event)[2 - len(missing)]
        raise document.unreadable(f"{what} is not an {'object' if missing else 'array'}", node.start)
    assert isinstance(node, Container)  # noqa: S101 - see above
    value: Any = {event: [entry]} if len(missing) == 2 else [entry] if missing else entry
    name = f"{json.dumps(missing[0])}: " if missing else ""
    long = name + json.dumps(value, indent=_unit(document), ensure_ascii=False)
    return appended(document, node, [re.sub(r"\n\s*", " ", long)], long)


def _unit(document: Document) -> str:
    """The indentation of the file's first member."""
    root = document.root
    first = root.children[0].start if isinstance(root, Object) and root.children else 0
    return document.indentation(first) or "  "


_THERE: Final = "\n"
"""Follows the content of a file that was there, and blank, before `with_hook` wrote it."""


def _new_file(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def _after_new_file(document: Document, events: Sequence[str], hooks: list[Node]) -> str | None:
    """What follows the content that `with_hook` gives a new file; None if it is not like that, or if somebody has edited it."""
    value, found = plain(document.root), [_entries(document.root, event) for event in events]
    entries = [child.node for array in found if isinstance(array, Array) for child in array.children]
    if entries != hooks or value.keys() - {"version", "hooks"} or value["hooks"].keys() - {*events}:
        return None
    with contextlib.suppress(ValueError):  # an integer of thousands of digits
        whole = _new_file(json.loads(document.text))  # unlike `plain`, it leaves integers as they are
        rest = document.text.removeprefix(whole)
        return rest if document.text.startswith(whole) and not rest.strip() else None
    return None
