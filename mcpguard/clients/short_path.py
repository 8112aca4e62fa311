"""Warns of commands that a client on macOS may not find: an app that the Dock starts has a short `PATH`."""

import os
import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from mcpguard.clients.discovery import Machine
from mcpguard.clients.plan import Outcome

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


def warnings(outcomes: Iterable[Outcome], machine: Machine) -> Iterator[str]:
    """A warning for each command of a newly guarded server that is not on the short `PATH`.

    Args:
        outcomes: What happens to each server.
        machine: The account. There are warnings on macOS alone.
    """
    if machine.system != "darwin":
        return
    titles: dict[str, dict[str, None]] = {}
    for one in outcomes:
        bare = one.command and os.path.basename(one.command) == one.command  # noqa: PTH119
        if one.action == "guard" and bare and one.source.client.key in _APPS and not shutil.which(one.command, path=SHORT):
            titles.setdefault(one.command, {})[one.source.client.title] = None
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
