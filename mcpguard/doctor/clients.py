"""Checks the files of clients, and finds a server in them."""

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final, NamedTuple

from mcpguard.clients.discovery import Machine, readable_entries, sources
from mcpguard.doctor import client_files
from mcpguard.doctor.check import Check
from mcpguard.errors import ConfigError, UsageError

_FILLED: Final = re.compile(r"\$\{(?:env:)?(\w+)(?::-([^}]*))?\}|\{env:(\w+)\}|\$(\w+)")
"""Variables that clients fill in from their environment: `${A}`, `${A:-default}`, `${env:A}`, `{env:A}`; some also `$A`."""

_FILL_BARE: Final = ("copilot", "gemini", "qwen")
"""The clients that also fill in `$A`."""

_FILL_NOTHING: Final = ("claude-desktop", "codex", "zed", "goose")
"""The clients that pass `${A}` on as it is, for example to a shell."""

_PROJECT: Final = "${workspaceFolder}"
"""The folder of the project, as VS Code and Cursor name it."""

_VARIABLE: Final = re.compile(r"\$\{[^}]*\}|\{env:\w+\}")


class Command(NamedTuple):
    """How a client starts a server.

    Attributes:
        words: The command and its arguments, those of mcpguard included.
        env: The variables that the client sets for it.
        cwd: The folder in which it starts; empty for the working folder.
        is_guarded: Whether it starts through mcpguard.
    """

    words: tuple[str, ...]
    env: dict[str, str]
    cwd: str
    is_guarded: bool


def checks() -> Iterator[Check]:
    """Check the files of the account's clients, and those of the project in the working folder."""
    try:
        machine = Machine.this()
    except ConfigError:
        return  # without a home folder there are no clients
    project = _project(machine)
    yield from dict.fromkeys([*client_files.checks(machine), *(client_files.checks(machine, project) if project else ())])


def _project(machine: Machine) -> Path | None:
    """The working folder, unless it is the home folder or no longer exists."""
    try:
        folder = Path.cwd()
    except OSError:
        return None
    return None if folder == Path(os.path.realpath(machine.home)) else folder


def command_of(server: str, environ: Mapping[str, str]) -> Command:
    """How the clients on this machine start a server.

    Args:
        server: The server's name in the clients' files.
        environ: Fills in the variables of the clients.

    Raises:
        UsageError: No client has the server, they start it differently, or only the client knows a variable.
    """
    machine = Machine.this()
    project = _project(machine)
    here = sources(machine, project=project) if project else []
    known = [(source, entry) for source in (*sources(machine), *here) for entry in readable_entries(source) if entry.words]
    found = [(source, entry) for source, entry in known if entry.name == server]
    found = [one for one in found if one[1].kind != "disabled"] or found
    found = [one for one in found if not one[0].project or one[0] in here] or found  # without those of other projects
    again = f"give its command: mcpguard doctor --server {server} -- COMMAND"
    if not found:
        names = " ".join(sorted({entry.name for _, entry in known}))
        raise UsageError(
            f"--server: no client has a server {server} with a command", f"use one of: {names}" if names else again
        )
    commands = {(entry.words[len(entry.guard or ()) :], frozenset(entry.env.items()), entry.cwd) for _, entry in found}
    if len(commands) > 1:
        titles = list(dict.fromkeys(source.client.title for source, _ in found))
        start = f"{', '.join(titles)} {'start' if len(titles) > 1 else 'starts'}"
        raise UsageError(f"--server: {start} {server} with different commands, folders or variables", again)
    source, entry = next((one for one in found if one[1].guard), found[0])
    if entry.env_file:
        raise UsageError(f"--server: only the client reads the variables of {server} from {entry.env_file}", again)
    if source.client.key in _FILL_NOTHING:
        return Command(entry.words, dict(entry.env), entry.cwd, entry.guard is not None)
    bare = source.client.key in _FILL_BARE
    words = tuple(_filled(word, environ, bare=bare) for word in entry.words)
    env = {name: _filled(value, environ, bare=bare) for name, value in entry.env.items()}
    cwd = _filled(entry.cwd.replace(_PROJECT, str(source.start)), environ, bare=bare)
    if not cwd and os.path.isdir(source.project):  # noqa: PTH112 - `Path.is_dir` raises without permission
        cwd = source.project
    unknown = [name for text in (*words, *env.values(), cwd) for name in _VARIABLE.findall(text)]
    if unknown:
        raise UsageError(f"--server: only the client can fill in {' '.join(dict.fromkeys(unknown))} for {server}", again)
    return Command(words, env, cwd, entry.guard is not None)


def _filled(text: str, environ: Mapping[str, str], *, bare: bool) -> str:
    def value(found: re.Match[str]) -> str:
        if found[4] and not bare:
            return found[0]
        return environ.get(found[1] or found[3] or found[4], found[0] if found[2] is None else found[2])

    return _FILLED.sub(value, text)
