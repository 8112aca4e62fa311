"""Checks which `mcpguard` the PATH finds."""

import os
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path

import mcpguard
from mcpguard import __version__
from mcpguard.clients.guards import version_of
from mcpguard.clients.launcher import PROGRAM
from mcpguard.doctor.check import Check, advice, failed, good
from mcpguard.files import changeable


def checks() -> Iterator[Check]:
    """Tell whether `mcpguard` on the PATH is this one."""
    yield from found_on(os.get_exec_path(), _own())


def _own() -> Path:
    """The command of this environment."""
    return Path(sysconfig.get_path("scripts")) / PROGRAM


def found_on(folders: Sequence[str], own: Path) -> Iterator[Check]:
    """Check the folders of a PATH.

    Args:
        folders: The folders, in their order.
        own: The command of this environment.
    """
    places = [Path(folder) / own.name for folder in folders if folder]
    found: dict[Path, Path] = {}
    for place in places:
        if os.access(place, os.X_OK) and place.is_file():
            found.setdefault(place.resolve(), place)
    if not found:
        hint = (
            f"use its full path in clients: {own}" if own.is_file() else "install it as a program: uv tool install mcpguard-cli"
        )
        yield advice("PATH", f"mcpguard {__version__} is not on the PATH", hint)
        return
    first, *others = found.values()
    if first.resolve() == own.resolve():
        yield good("PATH", f"{first}, version {__version__}")
    elif reason := changeable(first):
        yield advice(
            "PATH", f"{first} is found first, and other accounts may change it: {reason}", f"remove {first.parent} from it"
        )
    else:
        version = version_of(first)
        here = own if own.is_file() else Path(mcpguard.__file__).parent
        detail = f"{first} is another mcpguard, version {version or 'unknown'}; this one is {__version__} in {here}"
        if version in (None, __version__):
            yield advice("PATH", detail, "remove one of the two, so that it is clear which one clients start")
        else:
            order = f", or put {own.parent} before its folder in the PATH" if own.is_file() else ""
            yield failed("PATH", detail, f"remove or upgrade {first}{order}")
    if others:
        more = " ".join(map(str, others))
        yield advice("PATH", f"there are more of them: {more}", "remove them: a client whose PATH differs may start one")
