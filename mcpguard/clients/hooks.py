"""Plans what `install --hook` and `uninstall` change in clients' files of hooks."""

import itertools
import os
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from mcpguard.clients.catalog import Client, Hook
from mcpguard.clients.discovery import Fault, Machine, hook_file, may_exist, read, unreadable
from mcpguard.clients.documents import Dialect
from mcpguard.clients.guards import Guard, Guards
from mcpguard.clients.hook_entries import hook_commands, with_commands, with_hook, without_hook
from mcpguard.clients.installing import HookOutcome, Plan
from mcpguard.clients.launcher import Launcher, may_vary, program_of, words_of
from mcpguard.clients.nodes import Unreadable
from mcpguard.clients.records import Record

TIMEOUT_S: Final = 5
"""The time limit that the client sets for the hook. The hook's own limit is a second."""

_MATCHER: Final = "mcp__.*"
_ONE_COMMAND: Final = re.compile(r"(?:& )?[^;|&`$()<>\n]*")
"""A command line that starts one program. PowerShell needs the `&` for a path in quotes."""


def commands_in(file: Path, hook: Hook) -> list[str]:
    """The command lines of mcpguard's hooks in a client's file. A missing file has none.

    Raises:
        Fault: The file cannot be read.
    """
    if not may_exist(file):
        return []
    try:
        return hook_commands(read(file), hook.event)
    except Unreadable as error:
        raise unreadable(file, error) from error


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


def plan_hooks(plan: Plan, machine: Machine, clients: Iterable[Client], project: Path | None, launcher: Launcher) -> None:
    """Plan to add the hooks of clients. A hook that is there stays. If its mcpguard is gone, it gets the path of this one.

    Args:
        plan: The plan.
        machine: The account.
        clients: The clients. A client without a hook is ignored.
        project: The project whose files are changed; None for the account's.
        launcher: The command to write.
    """
    guards = Guards(os.environ)
    for client in clients:
        if client.hook is None:
            continue
        file = hook_file(machine, client.hook, project)
        with plan.noting_faults(file):
            commands = commands_in(file, client.hook)
            found = {command: guard_of(command, guards, project) for command in commands}
            mended = {command: launcher.hook(client.key, command) for command, guard in found.items() if guard.is_gone}
            if unsafe := [guard for guard in found.values() if guard.state == "unsafe" and not guard.is_gone]:
                hint = f"write {launcher.program} in its place in the file"
                raise Fault(f"{file}: the hook is not changed: {unsafe[0].fault}", hint)
            if commands and not mended:
                plan.hooks.append(HookOutcome(client, file, "the hook is there already"))
                continue
            version = None if client.hook.is_matched else 1
            exists = may_exist(file)
            data = plan.content(file) if exists else b""
            if mended:
                new = with_commands(data, client.hook.event, mended)
            else:
                entry = _entry(client.hook, launcher.hook(client.key))
                new = with_hook(data, client.hook.event, entry, version=version)
            plan.put(file, new, Dialect.JSON)
            if not data:
                plan.note(_was_empty(file), holds=exists)
            text = "the hook's mcpguard is this one now" if mended else "the hook was added"
            plan.hooks.append(HookOutcome(client, file, text, client.hook.after or client.after))


def plan_no_hooks(plan: Plan, machine: Machine, clients: Iterable[Client], project: Path | None) -> None:
    """Plan to remove the hooks of clients, and files that hold nothing else: see `plan_hooks`."""
    for client in clients:
        if client.hook is None:
            continue
        file = hook_file(machine, client.hook, project)
        with plan.noting_faults(file):
            if commands_in(file, client.hook):
                new = without_hook(plan.content(file), client.hook.event)
                stays = plan.holds(_was_empty(file)) or file.is_symlink()
                plan.put(file, new if new or stays else None, Dialect.JSON)
                plan.note(_was_empty(file), holds=False)
                plan.hooks.append(HookOutcome(client, file, "the hook was removed", client.after))


def _was_empty(file: Path) -> Record:
    """The record of a file that was there and had no content."""
    return Record(os.path.realpath(file), ())


def _entry(hook: Hook, command: str) -> dict[str, Any]:
    """A hook in the client's form."""
    if hook.is_matched:
        return {"matcher": _MATCHER, "hooks": [{"type": "command", "command": command, "timeout": TIMEOUT_S}]}
    return {"type": "command", "powershell" if sys.platform == "win32" else "bash": command, "timeoutSec": TIMEOUT_S}
