"""The hooks of clients: which are there, whether a client runs them, and what `install` adds and `uninstall` removes."""

import codecs
import contextlib
import hashlib
import itertools
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from mcpguard.clients.catalog import Client, Hook, HookEvent, HookForm
from mcpguard.clients.discovery import FileFault, HookFile, Machine, content_of, hook_files, may_exist, off_by, read, unreadable
from mcpguard.clients.guards import Guards, NamedGuard
from mcpguard.clients.launcher import Launcher, is_same, may_vary, program_of, words_of
from mcpguard.clients.plan import ChangePlan, HookOutcome
from mcpguard.documents.document import Document, Splice, appended, encoded, is_blank, quoted, removed
from mcpguard.documents.document import read as parsed
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
        node: The hook in it, or the entry itself.
        lines: Its command lines. Copilot CLI's has one for each shell.
    """

    event: str
    places: tuple[int, int]
    entry: Object
    node: Object
    lines: tuple[Scalar, ...]

    @property
    def command(self) -> str:
        """Its first command line."""
        return str(self.lines[0].value)

    @property
    def decides(self) -> bool:
        """Whether it is a deciding hook."""
        return DECIDES in words_of(self.command)


def ours(place: HookFile) -> list[Ours]:
    """The hooks of mcpguard in a client's file. A missing file has none.

    Raises:
        FileFault: The file cannot be read.
    """
    try:
        return hooks_in(read(place.file) if may_exist(place.file) else b"", place.hook)
    except Unreadable as error:
        raise unreadable(place.file, error) from error


def hooks_in(data: bytes, hook: Hook) -> list[Ours]:
    """The hooks of mcpguard in the content of a client's file.

    Raises:
        Unreadable: The content is not of the client's dialect.
    """
    return [] if is_blank(data) else list(_ours(parsed(data, hook.dialect).root, hook))


def _ours(root: Node, hook: Hook) -> Iterator[Ours]:
    for event in hook.names:
        for group, entry in enumerate(_entries(root, event)):
            for at, node in enumerate(_handlers(entry)):
                texts = [text for text in (node.get(key) for key in _COMMANDS) if isinstance(text, Scalar)]
                if lines := tuple(text for text in texts if isinstance(text.value, str) and _OURS.search(text.value)):
                    assert isinstance(entry, Object)  # noqa: S101 - it has handlers
                    yield Ours(event, (group, at), entry, node, lines)


def _entries(root: Node, event: str) -> list[Node]:
    found = root.get("hooks", event) if isinstance(root, Object) else None
    return [child.node for child in found.children] if isinstance(found, Array) else []


def _handlers(entry: Node) -> list[Object]:
    """What has the command lines of an entry: its hooks, or the entry itself."""
    inner = entry.get("hooks") if isinstance(entry, Object) else None
    nodes = [entry] if inner is None else [child.node for child in inner.children] if isinstance(inner, Array) else []
    return [node for node in nodes if isinstance(node, Object)]


def deciding(place: HookFile) -> list[Ours]:
    """The deciding hooks in a file, for the event that shows the calls of servers.

    Raises:
        FileFault: The file cannot be read.
    """
    return [one for one in ours(place) if one.event == place.hook.deciding.name and one.decides]


def guard_of(command: str, guards: Guards, project: Path | None) -> NamedGuard:
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
        return NamedGuard("unseen", "its command line may start more than mcpguard")
    return found


def why_skipped(machine: Machine, place: HookFile, folder: Path | None) -> tuple[str, str] | None:
    """Why the deciding hook in a file does not decide each call of a server, and what to do; None if it does.

    Args:
        machine: The account.
        place: The file.
        folder: The project in which the client runs; None if it runs elsewhere.

    Raises:
        FileFault: The file cannot be read.
    """
    client, hook = place.client, place.hook
    for switch in hook.off:
        if setting := off_by(machine, switch, folder):
            return f"{client.title} skips it, because {setting}", "remove that setting"
    found = deciding(place)
    reasons = [reason for one in found if (reason := _why_idle(one, place))]
    if reasons and len(reasons) == len(found):
        return reasons[0]
    if not hook.trust:
        return None
    state = content_of(machine.paths(hook.trust)[0], "hooks", "state") or {}
    if all(any(_is_trusted(state, name, one) for name in (place.file, os.path.realpath(place.file))) for one in found):
        return None
    return f"{client.title} skips it, because you have not trusted it, or not since it changed", hook.after


def idle_hooks(plan: ChangePlan) -> Iterator[FileFault]:
    """A fault for each deciding hook of a plan that the client does not ask before each call, even once it is trusted."""
    for place in [outcome.place for outcome in plan.hooks]:
        with contextlib.suppress(FileFault):  # the plan reports it
            skipped = why_skipped(plan.machine, place, place.project) if deciding(place) else None
            if skipped and skipped[1] != place.hook.after:
                yield FileFault(f"{place.file}: the hook is there, but {skipped[0]}", skipped[1])


def _why_idle(one: Ours, place: HookFile) -> tuple[str, str] | None:
    """Why a deciding hook lets some calls pass, and what to do; None if it decides all."""
    words, start, key = words_of(one.command), f"mcpguard hook {place.client.key}", place.client.key
    if ("hook", key) not in itertools.pairwise(words):
        return f"it decides nothing, because its command is not {start}", f"write {start} in its place in the file"
    if any(word == "--observe" or word.startswith("MCPGUARD_OBSERVE=") for word in words):
        return "it denies nothing, because its command says to observe", "remove that from its command, if you have seen enough"
    handler, matcher = plain(one.node), plain(one.entry).get("matcher")
    for key in ("async", "asyncRewake", "if"):
        if handler.get(key):
            return f"it does not decide each call, because it has {key}", f"remove {key} from the hook in the file"
    if matcher not in ("", "*", None, place.hook.deciding.form("").get("matcher")):
        return f"it does not see each call, because its matcher is {matcher}", "remove the matcher in the file"
    return None


def _is_trusted(states: dict[str, Any], file: Path | str, one: Ours) -> bool:
    """Whether Codex runs a hook: it keeps a hash of the definition. Seen in 0.171.0."""
    event = re.sub(r"(?<=.)(?=[A-Z])", "_", one.event).lower()
    state = states.get(f"{file}:{event}:{one.places[0]}:{one.places[1]}") or {}
    hook = {"async": False, "timeout": 600.0} | plain(one.node)
    timeout_s = int(hook["timeout"]) if isinstance(hook["timeout"], float) else None  # all numbers of a document are floats
    whole = plain(one.entry) | {"event_name": event, "hooks": [hook | {"timeout": timeout_s}]}
    text = json.dumps(whole, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    digest = f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"
    return state.get("enabled") is not False and state.get("trusted_hash") == digest


def plan_hooks(
    plan: ChangePlan, clients: Iterable[Client], project: Path | None, launcher: Launcher | None,
    *, decide: bool = False, fail_closed: bool = False,
) -> None:  # fmt: skip
    """Plan to add the hooks of clients, or to remove them, with files that hold nothing else.

    A hook that is there stays. If its mcpguard is gone, it gets the path of this one. A hook that leaves notes becomes the
    deciding one in its place, because a client may have trusted the hooks after it by their places.

    Args:
        plan: The plan.
        clients: The clients. A client without a hook is ignored.
        project: The project whose files are changed; None for the account's.
        launcher: The command to write; None to remove hooks.
        decide: Whether to add the hooks that decide, not those that only leave notes.
        fail_closed: Whether a client denies if the hook fails, where it can.
    """
    for place in hook_files(plan.machine, clients, project):
        if launcher and not (decide or place.hook.leaves_notes):
            continue
        with plan.noting_faults(place.file):
            if launcher and decide and (other := _decides_elsewhere(plan.machine, place)):
                hint = "one is enough; to have it here, remove it there first"
                raise FileFault(
                    f"{place.file}: no hook is added: {other} has a deciding one, and calls would count twice", hint
                )
            data = plan.content(place.file)
            found = {one.command: guard_of(one.command, plan.guards, project) for one in hooks_in(data, place.hook)}
            if launcher:
                plan.hooks.append(_added_to(plan, place, found, launcher, decide=decide, fail_closed=fail_closed))
            elif found:
                new = without_hook(data, place.hook)
                plan.put(place.file, b"" if new is None and place.file.is_symlink() else new, place.hook.dialect)
                plan.hooks.append(HookOutcome(place, "the hook was removed", place.client.after))


def _decides_elsewhere(machine: Machine, place: HookFile) -> Path | None:
    """The account's file with a deciding hook, if a project's is changed, or that of the project in the working folder."""
    with contextlib.suppress(FileFault):  # the client cannot read the file either
        for other in hook_files(machine, [place.client], None if place.project else machine.project):
            return other.file if deciding(other) and not is_same(other.file, place.file) else None
    return None


def _added_to(
    plan: ChangePlan, place: HookFile, found: Mapping[str, NamedGuard], launcher: Launcher, *, decide: bool, fail_closed: bool
) -> HookOutcome:
    """Plan to add a hook to a file with these command lines of mcpguard's, or to mend them."""
    client, hook = place.client, place.hook
    if unsafe := [guard for guard in found.values() if guard.state == "unsafe" and not guard.is_gone]:
        hint = f"write {launcher.program} in its place in the file"
        raise FileFault(f"{place.file}: the hook is not changed: {unsafe[0].fault}", hint)
    mended = {command: launcher.hook(client.key, command) for command, guard in found.items() if guard.is_gone}
    old = plan.content(place.file) if may_exist(place.file) else None
    new = _with_commands(old, hook, mended) if old and mended else old
    for event in hook.events:
        closed = dict(event.closed) if decide and fail_closed else {}
        if new and any(one.event == event.name for one in hooks_in(new, hook)):
            if decide and event.decides:
                new = _deciding(new, place, event, launcher, closed)
        elif decide or (event.note and not found):
            form = event.note if event.note and not decide else event.form
            entry = _filled(form, launcher.hook(client.key, decides=decide and event.decides), closed)
            new = with_hook(new, hook, event.name, entry)
    if new == old:
        return HookOutcome(place, "the hook is there already")
    plan.put(place.file, new, hook.dialect)
    text = "the hook's mcpguard is this one now" if mended else "the hook was added"
    if decide:
        misses = f", but not {hook.misses}" if hook.misses else ""
        done = "the hook decides now" if found else "the deciding hook was added"
        text = f"{done}: it limits calls of built-in tools and of all MCP servers{misses}"
    return HookOutcome(place, text, hook.after or client.after)


def _filled(form: HookForm, command: str, closed: Mapping[str, str]) -> dict[str, Any]:
    """The entry of a hook, with `closed` beside its command line."""
    entry = form(command)
    for handler in entry.get("hooks", [entry]):
        handler.update(closed)
    return entry


def _deciding(data: bytes, place: HookFile, event: HookEvent, launcher: Launcher, closed: Mapping[str, str]) -> bytes:
    """Make the hook of an event the deciding one, in its place.

    Raises:
        FileFault: There are several, or it shares its entry with other hooks.
    """
    document = parsed(data, place.hook.dialect)
    found = [one for one in _ours(document.root, place.hook) if one.event == event.name]
    (node, *others), entry = _removable(found), found[0].entry
    parts = [{key: value for key, value in plain(one.node).items() if key in dict(event.closed)} for one in found]
    if not others and all(one.decides for one in found) and all(part == closed for part in parts):
        return data
    if others or node is not entry:
        hint = "leave one hook of mcpguard in the file, in an entry of its own, then run this again"
        raise FileFault(f"{place.file}: the hook is not changed: it is there more than once, or beside other hooks", hint)
    line = launcher.hook(place.client.key, found[0].command, decides=True)
    text = json.dumps(_filled(event.form, line, closed), indent=_unit(document), ensure_ascii=False)
    gap = document.line_break(node.start) + document.indentation(node.start)
    is_long = "\n" in document.text[node.start : node.end]
    return document.after([Splice(node.start, node.end, text.replace("\n", gap) if is_long else _on_one_line(text))])


def _with_commands(data: bytes, hook: Hook, new: Mapping[str, str]) -> bytes:
    """Replace command lines of hooks. Everything else in the file stays as it is."""
    document = parsed(data, hook.dialect)
    lines = [line for one in _ours(document.root, hook) for line in one.lines]
    return document.after(Splice(line.start, line.end, quoted(new[text])) for line in lines if (text := str(line.value)) in new)


def with_hook(data: bytes | None, hook: Hook, event: str, entry: Mapping[str, Any]) -> bytes:
    """Add a hook of mcpguard for an event that has none. `without_hook` removes it.

    Args:
        data: The file; None if it does not exist.
        hook: The client's hook.
        event: The client's name for the event.
        entry: The entry of the hook.

    Raises:
        Unreadable: The file is not of the client's dialect, or cannot be edited in place.
    """
    if data is None or is_blank(data):
        head = {} if hook.version is None else {"version": hook.version}
        made = encoded(_new_file(head | {"hooks": {event: [entry]}}))
        if data is None:
            return made
        mark = data[: len(data) - len(data.removeprefix(codecs.BOM_UTF8))]
        return mark + made + _THERE.encode() + data.removeprefix(mark)
    document = parsed(data, hook.dialect)
    new = document.after([_added(document, event, entry)])
    if without_hook(new, hook) != without_hook(data, hook):
        raise Unreadable("the hook cannot be added in place")
    return new


def without_hook(data: bytes, hook: Hook) -> bytes | None:
    """Remove the hooks of mcpguard, and what `with_hook` has added for them.

    Returns:
        The file; None if `with_hook` has made it.

    Raises:
        Unreadable: The file is not of the client's dialect, or cannot be edited in place.
    """
    if is_blank(data):
        return data
    document = parsed(data, hook.dialect)
    nodes = _removable(list(_ours(document.root, hook)))
    after = _after_new_file(document, hook, nodes) if nodes else None
    if after is None:
        return removed(document, nodes)
    return document.mark + after.removeprefix(_THERE).encode() if after else None


def _removable(found: Sequence[Ours]) -> list[Object]:
    """What goes with hooks: an entry that has nothing but hooks of mcpguard's, or else the hooks alone."""
    of_entry = Counter(id(one.entry) for one in found)
    arrays = [one.entry.get("hooks") for one in found]
    whole = [len(inner.children) if isinstance(inner, Array) else 1 for inner in arrays]
    nodes = [one.entry if of_entry[id(one.entry)] == size else one.node for one, size in zip(found, whole, strict=True)]
    return list({id(node): node for node in nodes}.values())


def _added(document: Document, event: str, entry: Mapping[str, Any]) -> Splice:
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
    return appended(document, node, _on_one_line(long), long)


def _on_one_line(text: str) -> str:
    return re.sub(r"\n\s*", " ", text)


def _unit(document: Document) -> str:
    """The indentation of the file's first member."""
    root = document.root
    first = root.children[0].start if isinstance(root, Object) and root.children else 0
    return document.indentation(first) or "  "


_THERE: Final = "\n"
"""Follows the content of a file that was there, and blank, before `with_hook` wrote it."""


def _new_file(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def _after_new_file(document: Document, hook: Hook, nodes: Sequence[Object]) -> str | None:
    """What follows the content that `with_hook` gives a new file; None if it is not like that, or if somebody has edited it."""
    value, entries = plain(document.root), [entry for event in hook.names for entry in _entries(document.root, event)]
    if entries != nodes or value.keys() - {"version", "hooks"} or value["hooks"].keys() - {*hook.names}:
        return None
    if not all(value["hooks"].values()):  # an event without an entry was there before
        return None
    with contextlib.suppress(ValueError):  # an integer of thousands of digits
        whole = _new_file(json.loads(document.text))  # unlike `plain`, it leaves integers as they are
        rest = document.text.removeprefix(whole)
        return rest if document.text.startswith(whole) and not rest.strip() else None
    return None
