"""Starts programs of the operating system."""

import contextlib
import os
import subprocess
import sys


def output_of(name: str, *arguments: str, within_s: float) -> str:
    """What a program of the system prints; empty if it cannot be started or takes too long.

    It is started by its full path: Windows would look into the working folder first, which may be somebody else's project. It
    gets nothing of the environment, which may hold secrets.

    Args:
        name: Its name, without the ending `.exe`.
        arguments: Its arguments.
        within_s: How long it may take.
    """
    environ = {"SYSTEMROOT": _windows()} if sys.platform == "win32" else {}  # without the variable Windows finds no DLLs
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        return subprocess.run(
            [system_program(name), *arguments],
            env=environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=within_s,
            creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
            check=False,
        ).stdout
    return ""


def system_program(name: str) -> str:
    """The full path of a program of the system."""
    return rf"{_windows()}\System32\{name}.exe" if sys.platform == "win32" else f"/usr/bin/{name}"


def _windows() -> str:
    return os.environ.get("SYSTEMROOT", r"C:\Windows")
