"""Plans what `install` and `uninstall` change in the entries of servers.

Also warns of commands that a client on macOS may not find: an app that the Dock starts has a short `PATH`.
"""

import os
import re
import shutil
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

from mcpguard.clients.discovery import FileFault, Source, entries_of
from mcpguard.clients.editing import EntryEdit, edited
from mcpguard.clients.entries import Entry
from mcpguard.clients.launcher import Launcher, is_same
from mcpguard.clients.plan import ChangePlan, EntryOutcome, real, record_of
from mcpguard.clients.rewriting import bridged, plan_plugins, undone
from mcpguard.documents.document import quoted
from mcpguard.documents.document import read as parsed
from mcpguard.documents.model import Array, Object, plain

OWN_COMMAND: Final = "its own command starts mcpguard run"
"""What is said of an entry that starts mcpguard through another program, which neither `install` nor `uninstall` changes."""

_LEFT: Final = {
    "remote": "remote: mcpguard guards only servers that the client starts",
    "disabled": "disabled",
    "bundled": "part of the client or of an extension, which starts it without a command in this file",
}

SHORT: Final = "/usr/bin:/bin:/usr/sbin:/sbin"
"""The `PATH` of apps that launchd starts. Some clients ask the login shell for a better one, and may fail to."""

_APPS: Final = frozenset("claude-desktop cursor vscode windsurf zed cline continue kiro lm-studio".split())
"""The clients that are apps, or extensions in apps. The others are started in a terminal, with the shell's `PATH`."""

_USUAL: Final = (
    "/opt/homebrew/bin",
    "/usr/local/bin",
    "~/.local/bin",
    "~/.volta/bin",
    "~/.asdf/shims",
    "~/.local/share/mise/shims",
    "~/.nvm/versions/node/*/bin",
    "~/.local/share/fnm/node-versions/*/installation/bin",
    "~/.bun/bin",
    "~/.deno/bin",
    "~/.cargo/bin",
)
"""Where package managers put programs."""

_ENV: Final = re.compile(rb"#! */usr/bin/env (?:-S )?([\w.+-]+)")


def plan_servers(
    plan: ChangePlan, sources: Iterable[Source], servers: frozenset[str], launcher: Launcher | None, *, bridge: bool = False
) -> None:
    """Plan to edit the entries of servers, all of a file at once. What cannot be done is a fault of the plan.

    Args:
        plan: The plan.
        sources: The files.
        servers: The names of the servers; empty for all.
        launcher: The command to write; None to undo what this function has done with one.
        bridge: Whether to guard remote servers by `npx mcp-remote`.
    """
    files: dict[str, list[Source]] = {}
    for source in sources:
        files.setdefault(real(source.file), []).append(source)
    for group in files.values():
        outcomes: list[EntryOutcome] = []
        for source in group:
            with plan.noting_faults(source.file):
                if launcher and source.client.key == "codex" and not source.folder:
                    plan.outcomes += plan_plugins(plan, source, servers, launcher)
                done = {one.server for one in plan.outcomes if one.source == source}
                for entry in entries_of(source, plan.content(source.file)):
                    plan.servers.add(entry.name)
                    if entry.name not in done and (not servers or entry.name in servers):
                        with plan.noting_faults(source.file):
                            if launcher and bridge and entry.kind == "remote":
                                outcomes.append(bridged(plan, source, entry, launcher))
                            else:
                                outcomes.append(_outcome(plan, source, entry, launcher))
        _edit(plan, outcomes)


def _edit(plan: ChangePlan, outcomes: Sequence[EntryOutcome]) -> None:
    """Plan the edits of a file. Clients that share it want the same ones; the first of them has the strictest dialect."""
    done: Collection[EntryEdit] = ()
    edits = list(dict.fromkeys(one.edit for one in outcomes if one.edit))
    for source in [one.source for one in outcomes if one.edit][:1]:
        with plan.noting_faults(source.file):
            made = edited(plan.content(source.file), source.dialect, edits)
            for fault in made.faults:
                plan.note_fault(source.file, fault)
            plan.put(source.file, made.data, source.dialect)
            done = made.done
    for one in outcomes:
        if one.edit is None or one.edit in done:
            plan.outcomes.append(one)
        if one.edit and one.edit in done and one.action != "mend":  # without its record, an empty list would be left
            plan.note(record_of(one.source, one.server), holds=bool(one.edit.guard and one.edit.drop_empty_args))


def _outcome(plan: ChangePlan, source: Source, entry: Entry, launcher: Launcher | None) -> EntryOutcome:
    if entry.guard is None and launcher:
        return _guarded(plan, source, entry, launcher)
    if entry.guard is None:
        starts = entry.starts_mcpguard
        return EntryOutcome(source, entry, "leave" if starts else "keep", OWN_COMMAND if starts else "")
    if launcher is None:
        if undone(plan, source, entry):
            return EntryOutcome(source, entry, "unguard")
        edit = EntryEdit(source.layout, entry.name, drop_empty_args=plan.holds(record_of(source, entry.name)))
        return EntryOutcome(source, entry, "unguard", edit=edit)
    guard = plan.guards.of_entry(source, entry.guard[0])
    if guard.is_gone:
        for record in plan.rewritten(source, entry.name):
            plan.note(record, holds=False)
            new = record.new.replace(quoted(entry.guard[0]), quoted(launcher.program))
            plan.note(record._replace(new=new), holds=True)
        edit = EntryEdit(source.layout, entry.name, (launcher.program, *entry.guard[1:]))
        return EntryOutcome(source, entry, "mend", f"{entry.guard[0]} is gone", edit)
    if guard.state == "unsafe" and entry.kind == "stdio":  # it guards nothing
        hint = f"write {launcher.program} in its place in the file"
        raise FileFault(f"{source.file}: {entry.name}: not changed: {guard.fault}", hint)
    return EntryOutcome(source, entry, "keep")


def _guarded(plan: ChangePlan, source: Source, entry: Entry, launcher: Launcher) -> EntryOutcome:
    if entry.may_start:
        raise FileFault(f"{source.file}: {entry.name}: not changed: {entry.detail}")
    left = entry.detail if entry.kind == "faulty" else _LEFT.get(entry.kind, "" if entry.name else "it has no name")
    if left or entry.starts_mcpguard:
        return EntryOutcome(source, entry, "leave", left or OWN_COMMAND)
    if entry.is_sandboxed and not _may_write(plan.content(source.file), source, plan.state):
        hint = f"add {plan.state} to sandbox.filesystem.allowWrite in this file, or remove sandboxEnabled"
        raise FileFault(f"{source.file}: {entry.name}: its sandbox would keep mcpguard from its counters", hint)
    remark = "it starts in the container, where mcpguard must have the same path" if source.is_of_container else ""
    edit = EntryEdit(source.layout, entry.name, launcher.words(entry.name), drop_empty_args=not entry.has_args)
    return EntryOutcome(source, entry, "guard", remark, edit)


def _may_write(data: bytes, source: Source, state: Path) -> bool:
    """Whether the sandbox of a VS Code file lets its servers write to mcpguard's state folder."""
    root = parsed(data, source.dialect).root
    path = (*source.layout.path[:-1], "sandbox", "filesystem", "allowWrite")
    node = root.get(*path) if isinstance(root, Object) else None
    texts = [text for text in plain(node) if isinstance(text, str)] if isinstance(node, Array) else []
    folders = [Path(os.path.expanduser(text)) for text in texts]  # noqa: PTH111
    return any(is_same(folder, part) for folder in folders for part in (state, *state.parents))


def short_path_warnings(plan: ChangePlan) -> Iterator[str]:
    """A warning for each command of a newly guarded server that an app on macOS may not find: it is not on the short `PATH`."""
    machine = plan.machine
    if machine.system != "darwin":
        return
    titles: dict[str, dict[str, None]] = {}
    for one in plan.outcomes:
        command = "".join(one.entry.words[:1])
        bare = command and os.path.basename(command) == command  # noqa: PTH119
        if one.action == "guard" and bare and one.source.client.key in _APPS and not shutil.which(command, path=SHORT):
            titles.setdefault(command, {})[one.source.client.title] = None
    path = os.pathsep.join([machine.environ.get("PATH", ""), *_usual(machine.home)])
    for command, names in titles.items():
        found = shutil.which(command, path=path)
        folders = dict.fromkeys(os.path.dirname(one) for one in (found, found and _interpreter(found, path)) if one)  # noqa: PTH120
        hint = "write its full path"
        if found:
            hint = f'write {found} in its place, and "PATH": "{os.pathsep.join([*folders, SHORT])}" into env'
        apps = " or ".join(names)
        yield f"{command} is not on the PATH of apps that the Dock starts. If {apps} cannot start a server with it, {hint}"


def _usual(home: Path) -> Iterator[str]:
    """The folders of package managers that exist, of several versions the newest first."""
    for pattern in _USUAL:
        base = home if pattern.startswith("~/") else Path("/")
        found = base.glob(pattern.removeprefix("~/").removeprefix("/"))
        yield from map(str, sorted(found, key=lambda folder: [*map(int, re.findall(r"\d+", str(folder)))], reverse=True))


def _interpreter(program: str, path: str) -> str | None:
    """The program that a script asks `env` for, such as node for npx. It is on the `PATH`, too."""
    try:
        with open(program, "rb") as file:  # noqa: PTH123
            found = _ENV.match(file.readline(200))
    except OSError:
        return None
    return shutil.which(found[1].decode(), path=path) if found else None
