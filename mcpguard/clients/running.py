"""Finds out whether a client is running, where that is cheap."""

import contextlib
import sys
from pathlib import Path
from typing import Final

from mcpguard.clients.catalog import Client
from mcpguard.system_programs import output_of

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
        return on_windows in output_of("tasklist", "/FI", f"IMAGENAME eq {on_windows}", within_s=TIMEOUT_S)
    if sys.platform == "darwin":
        return bool(output_of("pgrep", "-x", on_mac, within_s=TIMEOUT_S).strip())
    return any(_name(process) == on_linux for process in Path("/proc").glob("[0-9]*"))


def _name(process: Path) -> str:
    with contextlib.suppress(OSError, ValueError):  # it has ended, or belongs to another account
        return (process / "comm").read_text("utf-8", "replace").strip()
    return ""
