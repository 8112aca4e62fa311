"""Clients and servers as their makers publish them, installed into a folder that is kept from run to run."""

import fcntl
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Final

HERE = Path(__file__).parent

VENVS: Final[Mapping[str, str]] = {
    "python-1": "mcp==1.30.0",
    "python-2": "mcp==2.3.0",
    "ready-python": "mcp-server-fetch==2026.10.24 mcp-server-git==2026.10.19 mcp-server-time==2026.10.19",
}
"""Virtual environments, and what is in each."""

PREFIXES: Final[Mapping[str, tuple[str, ...]]] = {
    "typescript": (
        "@modelcontextprotocol/sdk@1.32.2",
        "@modelcontextprotocol/client@2.4.0",
        "@modelcontextprotocol/server@2.4.0",
        "@modelcontextprotocol/server-everything@2026.8.31",
        "@modelcontextprotocol/server-filesystem@2026.8.31",
        "@modelcontextprotocol/server-memory@2026.8.31",
        "zod@4.6.7",
    ),
    "ready-npm": (
        "@modelcontextprotocol/server-filesystem@2026.8.31",
        "@modelcontextprotocol/server-memory@2026.8.31",
        "@modelcontextprotocol/server-postgres@0.6.2",
        "@modelcontextprotocol/server-puppeteer@2025.5.12",
        "@modelcontextprotocol/server-slack@2025.4.25",
        "@notionhq/notion-mcp-server@2.5.2",
        "@playwright/mcp@0.0.83",
        "@sentry/mcp-server@0.39.0",
    ),
    "taplo": ("@taplo/cli@0.7.0", "@taplo/lsp@0.8.0"),
}
"""Folders of npm packages, and what is in each."""

AGENTS: Final[Mapping[str, tuple[str, ...]]] = {
    "claude": ("@anthropic-ai/claude-code@2.1.332",),
    "codex": ("@openai/codex@0.171.0",),
    "copilot": ("@github/copilot@1.0.102",),
}
"""The same for clients with agents. They take 600 MB, so only `test_agents` installs them."""

_PIP = ("--quiet", "--disable-pip-version-check", "--no-compile", "--retries", "1", "--timeout", "15")
_NPM = (
    *("--loglevel", "error", "--no-audit", "--no-fund", "--ignore-scripts"),
    *("--fetch-retries", "1", "--fetch-retry-mintimeout", "1000", "--fetch-timeout", "15000"),
)
_INSTALL_S = 180
"""For each of these commands, whatever it waits for: a registry may take connections and say nothing."""


class MissingError(Exception):
    """Something cannot be had here: a program, a registry, a package."""


class Parts:
    """What is installed, or is when it is asked for, in `cache`. For the names in `own` there is an interpreter already."""

    def __init__(self, cache: Path, own: Mapping[str, str] | None = None, venvs: Mapping[str, str] = VENVS) -> None:
        self.cache = cache
        self._venvs = venvs
        self._own = dict(own or {})
        self._found: dict[str, Path | MissingError] = {}
        self._lock = threading.Lock()

    def python(self, name: str) -> str:
        if name in self._own:
            return self._own[name]
        requirement = self._venvs[name]

        def install(place: Path) -> None:
            python = str(place / "bin" / "python")
            pip: tuple[str, ...] = (sys.executable, "-m", "pip", "--python", python)
            if find_spec("pip"):  # saves the seconds that its installation takes
                _carry_out(sys.executable, "-m", "venv", "--without-pip", str(place))
            else:  # an environment that uv made
                _carry_out(sys.executable, "-m", "venv", str(place))
                pip = (python, "-m", "pip")
            _carry_out(*pip, "install", *_PIP, *requirement.split())

        return str(self._installed(name, requirement, install) / "bin" / "python")

    def npm(self, name: str) -> Path:
        """The `node_modules` of one of `PREFIXES` or `AGENTS`, beside our own programs for it."""
        packages = {**PREFIXES, **AGENTS}[name]

        def install(place: Path) -> None:
            npm = shutil.which("npm")
            if not npm or not shutil.which("node"):
                raise MissingError("node and npm are not here")
            place.mkdir(parents=True)
            _carry_out(npm, "install", *_NPM, "--prefix", str(place), *packages)

        place = self._installed(name, " ".join(packages), install)
        return place / "node_modules"

    def program(self, name: str) -> list[str]:
        """The command of one of our own programs for Node.js."""
        place = self.npm("typescript").parent  # a module finds packages beside itself only
        with self._lock:
            for folder in ("clients", "programs"):
                for file in (HERE / folder).glob("*.mjs"):
                    copy = place / f"{file.name}.{os.getpid()}.new"
                    shutil.copyfile(file, copy)
                    copy.replace(place / file.name)  # another one may be reading it
        return [self.node(), str(place / name)]

    def node(self) -> str:
        node = shutil.which("node")
        if not node:
            raise MissingError("node is not here")
        return node

    def _installed(self, name: str, what: str, install: Callable[[Path], None]) -> Path:
        with self._lock:
            found = self._found.get(name)
            if found is None:
                try:
                    found = self._install(name, what, install)
                except MissingError as error:
                    found = error
                self._found[name] = found
        if isinstance(found, MissingError):
            raise found
        return found

    def _install(self, name: str, what: str, install: Callable[[Path], None]) -> Path:
        self.cache.mkdir(parents=True, exist_ok=True)
        place = self.cache / name
        with (self.cache / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            done = self.cache / f"{name}.done"  # written last: what was broken off is made anew
            if not done.exists() or done.read_text() != what:
                done.unlink(missing_ok=True)
                shutil.rmtree(place, ignore_errors=True)
                install(place)
                done.write_text(what)
        return place


def _carry_out(*command: str) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_INSTALL_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise MissingError(f"not done in {_INSTALL_S} s: {' '.join(command)}") from error
    except OSError as error:
        raise MissingError(f"{command[0]}: {error}") from error
    if done.returncode:
        why = f"{done.stderr}\n{done.stdout}".strip()
        raise MissingError(f"{why.partition(chr(10))[0]}: {' '.join(command)}\n{why}")
