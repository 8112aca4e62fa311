"""Checks which `mcpguard` the PATH finds."""

import os
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from mcpguard import __version__
from mcpguard.doctor.check import Check, advice, failed, good

VERSION_S: Final = 10.0
"""How long another `mcpguard` may take to tell its version."""


def checks() -> Iterator[Check]:
    """Tell whether `mcpguard` on the PATH is this one."""
    yield from found_on(os.get_exec_path(), _own())


def _own() -> Path:
    """The command of this environment."""
    return Path(sysconfig.get_path("scripts")) / ("mcpguard.exe" if sys.platform == "win32" else "mcpguard")


def found_on(folders: Sequence[str], own: Path) -> Iterator[Check]:
    """Check the folders of a PATH.

    Args:
        folders: The folders, in their order.
        own: The command of this environment.
    """
    places = [Path(folder) / own.name for folder in folders if folder]
    found = list(
        {place.resolve(): place for place in reversed(places) if os.access(place, os.X_OK) and place.is_file()}.values()
    )[::-1]
    if not found:
        hint = f"clients need its full path: {own}"
        yield advice("PATH", f"mcpguard {__version__} is not on the PATH", hint)
        return
    first, *others = found
    if first.resolve() == own.resolve():
        yield good("PATH", f"{first}, version {__version__}")
    else:
        version = _version(first)
        detail = f"{first} is another mcpguard, {version}; this one is {__version__} in {own}"
        if version == f"version {__version__}":
            yield advice("PATH", detail, "remove one of the two, so that it is clear which one clients start")
        else:
            yield failed("PATH", detail, f"remove or upgrade {first}, or put {own.parent} before its folder in the PATH")
    if others:
        more = " ".join(map(str, others))
        yield advice("PATH", f"there are more of them: {more}", "remove them; a client whose PATH differs may start one")


def _version(program: Path) -> str:
    """What another command says about its version."""
    try:
        done = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=VERSION_S, check=False)
    except (OSError, subprocess.SubprocessError):
        return "which does not start"
    name, _, version = done.stdout.strip().partition(" ")
    return (
        f"version {version}" if name == "mcpguard" and version.isprintable() and not done.returncode else "which does not start"
    )
