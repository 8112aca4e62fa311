"""Finds out whether a client is running, where that is cheap."""

import contextlib
import subprocess
import sys
from pathlib import Path
from typing import Final

from mcpguard.clients.catalog import Client

TIMEOUT_S: Final = 5.0
"""How long to wait for the system's list of processes."""

_PROCESSES: Final = {"claude-desktop": ("claude-desktop", "Claude", "Claude.exe")}
"""The names of a client's processes on Linux, macOS and Windows. Claude Code's is `claude`."""


def is_running(client: Client) -> bool:
    """Whether the client is running; False if that cannot be found out."""
    names = _PROCESSES.get(client.key)
    if not names:
        return False
    on_linux, on_mac, on_windows = names
    if sys.platform == "win32":
        return on_windows in _output("tasklist", "/FI", f"IMAGENAME eq {on_windows}")
    if sys.platform == "darwin":
        return bool(_output("pgrep", "-x", on_mac).strip())
    return any(_name(process) == on_linux for process in Path("/proc").glob("[0-9]*"))


def _name(process: Path) -> str:
    with contextlib.suppress(OSError, ValueError):  # it has ended, or belongs to another account
        return (process / "comm").read_text("utf-8", "replace").strip()
    return ""


def _output(*command: str) -> str:
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        return subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=TIMEOUT_S, check=False).stdout
    return ""
