"""An account with clients, for tests of `install`, `uninstall` and `clients`."""

import json
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mcpguard.clients import launcher
from tests.cli import command

MOVING = (
    "XDG_CONFIG_HOME", "CLAUDE_CONFIG_DIR", "CODEX_HOME", "COPILOT_HOME", "APPDATA", "LOCALAPPDATA", "UV_TOOL_BIN_DIR",
    "PIPX_BIN_DIR",
)  # fmt: skip
"""Variables of the machine that runs the tests, which would lead to other files."""

PROGRAM = str(Path(sysconfig.get_path("scripts")) / launcher.PROGRAM)
"""What `install` writes as the command."""

CURSOR = """{
  "mcpServers": {
    "crm": {
      "command": "npx",
      "args": ["-y", "@acme/crm"],
      "env": {"CRM_KEY": "sk-secret"}
    },
    "bare": { "command": "crm-server" },
    "web": { "url": "https://mcp.acme.com/?key=s3cret" },
    "off": { "command": "old", "disabled": true }
  }
}
"""

CODEX = """model = "gpt-7"  # keep

[mcp_servers.crm]
command = 'npx'
args = ["-y", "@acme/crm"]
startup_timeout_sec = 20
"""


APPS = "home/AppData/Roaming" if sys.platform == "win32" else "home/.config"
"""Where desktop programs keep their files."""

IN_TOML = json.dumps(PROGRAM)[1:-1]
"""`PROGRAM` as a text in TOML and JSON has it."""


GONE = Path("/gone/mcpguard").absolute().as_posix()
"""A program that does not exist."""

HOOK = Path(PROGRAM).as_posix()
"""What `install --hook` writes as the command. A POSIX shell may run it on Windows, too."""


def listing(**servers: object) -> str:
    """The text of a file of Cursor's form."""
    return json.dumps({"mcpServers": servers})


ONE = listing(a={"command": "a", "args": []})
"""The text of a file with one server."""


class Account:
    """An account with a home folder, mcpguard's own folder, and a project."""

    def __init__(self, folder: Path) -> None:
        self.home, self.state, self.project = folder / "home", folder / "mcpguard", folder / "project"
        for path in (self.home, self.state, self.project):
            path.mkdir(parents=True)

    def environ(self, **more: str) -> dict[str, str]:
        """Variables for a command of this account."""
        return {"HOME": str(self.home), "USERPROFILE": str(self.home), **dict.fromkeys(MOVING, ""), **more}

    def run(self, *argv: str, **env: str) -> subprocess.CompletedProcess[str]:
        """Run a command without a terminal, in this process."""
        return command.mcpguard(self.state, *argv, **self.environ(**env))

    def install(self, *argv: str, status: int = 0, **env: str) -> subprocess.CompletedProcess[str]:
        """Run `mcpguard install --yes`, which ends with this status."""
        done = self.run("install", *argv, "--yes", **env)
        assert done.returncode == status, done.stderr
        return done

    def uninstall(self, *argv: str, status: int = 0) -> subprocess.CompletedProcess[str]:
        """Run `mcpguard uninstall --yes`, which ends with this status."""
        done = self.run("uninstall", *argv, "--yes")
        assert done.returncode == status, done.stderr
        return done

    def refusal(self, *argv: str, status: int = 1, **env: str) -> str:
        """What `mcpguard install --yes` says if it fails and changes no file."""
        before = self.files()
        done = self.install(*argv, status=status, **env)
        assert self.files() == before
        return done.stderr

    def undo(self, before: dict[str, bytes]) -> subprocess.CompletedProcess[str]:
        """Uninstall, which gives back every byte of the files, and keeps no note."""
        done = self.uninstall()
        assert self.files() == before
        notes = self.state / "installed.json"
        assert not notes.exists() or json.loads(notes.read_bytes()) == []
        return done

    def in_process(self, *argv: str, under: Sequence[str] = (), **env: str) -> subprocess.CompletedProcess[str]:
        """Run a command without a terminal, in a process of its own."""
        return command.process(self.state, *argv, under=under, preexec=None, **self.environ(**env))

    def on_terminal(self, *argv: str, typed: bytes = b"", columns: int = 80, **env: str) -> tuple[int, str]:
        """Run a command on a terminal; return its exit status and what the terminal received."""
        return command.on_terminal(self.state, *argv, typed=typed, columns=columns, **self.environ(**env))

    def write(self, name: str, text: str | bytes) -> Path:
        """Write a file below the folder of this account; `home/.cursor/mcp.json`."""
        path = self.home.parent / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    def cursor(self, text: str = CURSOR) -> Path:
        """Write Cursor's file."""
        return self.write("home/.cursor/mcp.json", text)

    def codex(self, text: str = CODEX) -> Path:
        """Write Codex's file."""
        return self.write("home/.codex/config.toml", text)

    def files(self) -> dict[str, bytes]:
        """The content of all files of clients."""
        roots = (self.home, self.project)
        return {str(path): path.read_bytes() for root in roots for path in sorted(root.rglob("*")) if path.is_file()}


def servers(file: Path) -> dict[str, Any]:
    """The servers in a file of Cursor's form."""
    found: dict[str, Any] = json.loads(file.read_bytes())["mcpServers"]
    return found


def guarded(name: str, *command: str, options: tuple[str, ...] = ()) -> dict[str, Any]:
    """A guarded entry."""
    return {"command": PROGRAM, "args": ["run", "--server", name, *options, "--", *command]}
