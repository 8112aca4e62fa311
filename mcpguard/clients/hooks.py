"""Plans what `install --hook` and `uninstall` change in clients' files of hooks."""

import itertools
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from mcpguard.clients.catalog import Client, Hook
from mcpguard.clients.discovery import Machine, hook_file, may_exist, read, unreadable
from mcpguard.clients.documents import Dialect
from mcpguard.clients.hook_entries import hook_commands, with_commands, with_hook, without_hook
from mcpguard.clients.installing import HookOutcome, Plan
from mcpguard.clients.launcher import Launcher, find, may_vary, program_of, words_of
from mcpguard.clients.nodes import Unreadable
from mcpguard.clients.records import Record

TIMEOUT_S: Final = 5
"""The time limit that the client sets for the hook. The hook's own limit is a second."""

_MATCHER: Final = "mcp__.*"


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


def is_gone(command: str) -> bool:
    """Whether the mcpguard of a hook's command line does not exist.

    A path with a variable counts as one that exists. So does a name after another command, such as `uvx`, which finds it.
    """
    program = program_of(command)
    before = itertools.takewhile(lambda word: word != program, words_of(command))
    is_found_by_another = os.path.basename(program) == program and any("=" not in word for word in before)  # noqa: PTH119
    return not is_found_by_another and not may_vary(program) and find(os.path.expanduser(program), os.environ) is None  # noqa: PTH111


def plan_hooks(plan: Plan, machine: Machine, clients: Iterable[Client], project: Path | None, launcher: Launcher) -> None:
    """Plan to add the hooks of clients. A hook that is there stays. If its mcpguard is gone, it gets the path of this one.

    Args:
        plan: The plan.
        machine: The account.
        clients: The clients. A client without a hook is ignored.
        project: The project whose files are changed; None for the account's.
        launcher: The command to write.
    """
    for client in clients:
        if client.hook is None:
            continue
        file = hook_file(machine, client.hook, project)
        with plan.noting_faults(file):
            commands = commands_in(file, client.hook)
            mended = {command: launcher.hook(client.key, command) for command in commands if is_gone(command)}
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
