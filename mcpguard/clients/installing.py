"""Plans what `install` and `uninstall` change in the entries of servers."""

import itertools
import os
import re
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Final

from mcpguard.clients.discovery import Fault, Source, entries_of
from mcpguard.clients.editing import Edit, edited
from mcpguard.clients.entries import Entry
from mcpguard.clients.guards import Guards
from mcpguard.clients.launcher import Launcher
from mcpguard.clients.plan import Outcome, Plan, record_of
from mcpguard.documents.document import Dialect
from mcpguard.documents.document import read as parsed
from mcpguard.documents.model import Array, Object, plain

_OTHER_GUARDS: Final = ("avakill-shim", "airlock-mcp", "mcp-proxy", "tollbooth", "mcp-tollbooth")

_STARTS_MCPGUARD: Final = re.compile(r"""(?:^|[\s/\\'"])mcpguard(?:-cli)?(?:\.exe|[\[@=:]\S{0,100})?['"]?\s+run(?:\s|$)""")
"""The program, or the package that `pipx run` and an image of a container name, perhaps with an extra or a version."""

OWN_COMMAND: Final = "its own command starts mcpguard run"
"""What is said of an entry that starts mcpguard through another program, which neither `install` nor `uninstall` changes."""

_FOLDER: Final = re.compile(r"(?:--(?:directory|project|prefix|cwd)|-C)[\s=]\S+")
"""An option of a launcher for a folder, which can have the program's name: `uv --directory /src/mcpguard run server.py`."""

_LEFT: Final = {
    "remote": "remote: mcpguard guards only servers that the client starts",
    "disabled": "disabled",
    "bundled": "part of the client or of an extension, which starts it without a command in this file",
}

Step = tuple[Outcome, Edit | None]
"""What happens to a server, and the edit of its entry that this needs."""


def plan_servers(plan: Plan, sources: Iterable[Source], servers: frozenset[str], launcher: Launcher | None) -> None:
    """Plan to edit the entries of servers, all of a file at once. What cannot be done is a fault of the plan.

    Args:
        plan: The plan.
        sources: The files.
        servers: The names of the servers; empty for all.
        launcher: The command to write; None to undo what this function has done with one.
    """
    guards = Guards(os.environ)
    for (file, dialect), group in itertools.groupby(sources, lambda source: (source.file, source.dialect)):
        steps: list[Step] = []
        for source in group:
            with plan.noting_faults(file):
                for entry in entries_of(source, plan.content(file)):
                    plan.servers.add(entry.name)
                    if not servers or entry.name in servers:
                        with plan.noting_faults(file):
                            steps.append(_step(plan, source, entry, launcher, guards))
        done = _edit(plan, file, dialect, list(dict.fromkeys(edit for _, edit in steps if edit)))
        for outcome, edit in steps:
            if edit is None or edit in done:
                plan.add(outcome)
            if edit and edit in done and outcome.action != "mend":  # without its record, an empty list would be left
                plan.note(record_of(outcome.source, outcome.server), holds=bool(edit.guard and edit.drop_empty_args))


def _step(plan: Plan, source: Source, entry: Entry, launcher: Launcher | None, guards: Guards) -> Step:
    if entry.guard is None and launcher:
        return _guard(plan, source, entry, launcher)
    if entry.guard is None and starts_mcpguard(entry):
        return Outcome(source, entry.name, "leave", OWN_COMMAND), None
    if entry.guard and launcher is None:
        drops = plan.holds(record_of(source, entry.name))
        return Outcome(source, entry.name, "unguard"), Edit(source.layout, entry.name, drop_empty_args=drops)
    if entry.guard and launcher:
        guard = guards.of_entry(source, entry.guard[0])
        if guard.is_gone:
            edit = Edit(source.layout, entry.name, (launcher.program, *entry.guard[1:]))
            return Outcome(source, entry.name, "mend", f"{entry.guard[0]} is gone"), edit
        if guard.state == "unsafe" and entry.kind == "stdio":  # it guards nothing
            hint = f"write {launcher.program} in its place in the file"
            raise Fault(f"{source.file}: {entry.name}: not changed: {guard.fault}", hint)
    return Outcome(source, entry.name, plan.was_edited(source, entry.name) or "keep"), None


def _edit(plan: Plan, file: Path, dialect: Dialect, edits: Collection[Edit]) -> Collection[Edit]:
    """Plan the edits of a file; return those that can be made."""
    if not edits:
        return ()
    with plan.noting_faults(file):
        made = edited(plan.content(file), dialect, edits)
        for fault in made.faults:
            with plan.noting_faults(file):
                raise fault
        plan.put(file, made.data, dialect)
        return made.done
    return ()


def _guard(plan: Plan, source: Source, entry: Entry, launcher: Launcher) -> Step:
    if entry.may_start:
        raise Fault(f"{source.file}: {entry.name}: not changed: {entry.detail}")
    left = entry.detail if entry.kind == "faulty" else _LEFT.get(entry.kind, "" if entry.name else "it has no name")
    if left or starts_mcpguard(entry):
        return Outcome(source, entry.name, "leave", left or OWN_COMMAND), None
    if entry.is_sandboxed and not _may_write(plan.content(source.file), source, plan.state):
        hint = f"add {plan.state} to sandbox.filesystem.allowWrite in this file, or remove sandboxEnabled"
        raise Fault(f"{source.file}: {entry.name}: its sandbox would keep mcpguard from its counters", hint)
    edit = Edit(source.layout, entry.name, launcher.words(entry.name), drop_empty_args=not entry.has_args)
    return Outcome(source, entry.name, "guard", _remark(source, entry)), edit


def _remark(source: Source, entry: Entry) -> str:
    """What a user should know of a server that is now guarded; may be empty."""
    if source.is_of_container:
        return "it starts in the container, where mcpguard must have the same path"
    other = Path(entry.words[0]).name if entry.words else ""
    return f"it also runs through {other}" if other in _OTHER_GUARDS else ""


def starts_mcpguard(entry: Entry) -> bool:
    """Whether an entry starts mcpguard through another program, such as `uvx` or `sh -c`. Another guard would count twice."""
    return _STARTS_MCPGUARD.search(_FOLDER.sub("", " ".join(entry.words))) is not None


def _may_write(data: bytes, source: Source, state: Path) -> bool:
    """Whether the sandbox of a VS Code file lets its servers write to mcpguard's state folder."""
    root = parsed(data, source.dialect).root
    path = (*source.layout.path[:-1], "sandbox", "filesystem", "allowWrite")
    node = root.get(*path) if isinstance(root, Object) else None
    texts = [text for text in plain(node) if isinstance(text, str)] if isinstance(node, Array) else []
    folders = [Path(os.path.expanduser(text)) for text in texts]  # noqa: PTH111
    return any(folder == state or folder in state.parents for folder in folders)
