"""Finds out what is known of an mcpguard that a client's file names. Nothing that a file names is started.

A file that is merely called `mcpguard` guards nothing. A program counts if only this account and root may change it. A project
may be somebody else's: a program that one of its files names must also be this mcpguard, or one on the `PATH`.
"""

import functools
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from mcpguard import __version__
from mcpguard.clients.discovery import Source
from mcpguard.clients.launcher import PROGRAM, find, is_relative, is_same, may_vary, own_program
from mcpguard.files import changeable
from mcpguard.light_typing import Final, Literal, NamedTuple

_DISTRIBUTION: Final = "mcpguard-cli"
_PACKAGES: Final = ("lib/python*/*-packages", "Lib/site-packages", "site-packages")
"""Where an environment keeps its packages, from the folder above that of its programs: on POSIX, and twice on Windows."""


class NamedGuard(NamedTuple):
    """What is known of an mcpguard that a file names.

    Attributes:
        state: `known`; `missing`; `unseen` if a project's file leaves to the client where it is; or `unsafe` if it may be
            somebody else's.
        fault: Why it is not `known`; empty if it is.
        file: Its file; None if there is none, or if only the client knows where it is.
        version: Its version; None if it is not known.
    """

    state: Literal["known", "missing", "unseen", "unsafe"]
    fault: str = ""
    file: Path | None = None
    version: str | None = None

    @property
    def holds(self) -> bool:
        """Whether no call passes it by. A server whose mcpguard is missing does not start."""
        return self.state in ("known", "missing")

    @property
    def is_gone(self) -> bool:
        """Whether there is no program at its path. It may be `unsafe`, too: others may put one there."""
        return self.file is None and self.state in ("missing", "unsafe")


class Guards:
    """Examines the mcpguards that files name.

    Args:
        environ: The environment.

    Attributes:
        own: The path of this mcpguard; None if it is not installed as a program.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self.own = own_program(environ)
        self.examine = functools.cache(self._examine)  # many entries name the same program

    def of_entry(self, source: Source, program: str) -> NamedGuard:
        """The guard of an entry.

        Args:
            source: Its file.
            program: The entry's first word.
        """
        if source.is_of_container:
            return NamedGuard("unseen", "its mcpguard is in the container, so it is not checked from here")
        begins_anywhere = is_relative(program) and source.start == Path()
        start = None if may_vary(program) or begins_anywhere else source.start
        return self.examine(program, start, is_of_project=source.folder is not None)

    def _examine(self, program: str, start: Path | None, *, is_of_project: bool) -> NamedGuard:
        """What is known of a program.

        Args:
            program: Its name or path.
            start: Where a relative path begins; None if only the client knows where the program is.
            is_of_project: Whether a project's file names it.
        """
        is_foreign = is_of_project or (is_relative(program) and not may_vary(program))  # a relative path leads into a project
        if start is None and is_foreign:
            return NamedGuard("unseen", f"only the client knows where its mcpguard is: {program}")
        if start is None:
            return NamedGuard("known")
        file = find(program, self._environ, start)
        file = file and file.absolute()
        if file is not None and file == self.own:
            return NamedGuard("known", file=file, version=__version__)
        if reason := changeable(file or program) if file or os.path.isabs(program) else "":  # noqa: PTH117
            may = "change" if file else "create"
            return NamedGuard("unsafe", f"other accounts may {may} its mcpguard {file or program}: {reason}", file)
        if file is None:
            return NamedGuard("missing", f"its mcpguard is missing: {program}")
        if self.own and is_same(file, self.own):
            return NamedGuard("known", file=file, version=__version__)
        if is_foreign and not any(is_same(file, other) for other in self._on_path):
            fault = f"its mcpguard is neither this one nor on your PATH, so it may be the project's: {file}"
            return NamedGuard("unsafe", fault, file)
        return NamedGuard("known", file=file, version=version_of(file))

    @functools.cached_property
    def _on_path(self) -> list[str]:
        """The mcpguards that the `PATH` finds."""
        folders = [folder for folder in self._environ.get("PATH", "").split(os.pathsep) if os.path.isabs(folder)]  # noqa: PTH117
        places = [os.path.join(folder, PROGRAM) for folder in folders]  # noqa: PTH118
        return [place for place in places if os.path.isfile(place)]  # noqa: PTH113 - as in `find`


def version_of(program: Path) -> str | None:
    """The version of an mcpguard, as the installation beside it has recorded it. The program is not run.

    Returns:
        None if no installation has recorded this program, or if other accounts may change the program or the record.
    """
    if changeable(program):
        return None
    try:
        versions = set(_recorded(os.path.realpath(program)))
    except (OSError, ValueError, LookupError):  # a damaged record
        return None
    return versions.pop() if len(versions) == 1 else None


def _recorded(program: str) -> Iterator[str]:
    """The version in each record that lists a program."""
    from importlib.metadata import DistributionFinder, MetadataPathFinder  # loads the package of e-mails

    above = Path(program).parent.parent
    folders = [str(folder) for pattern in _PACKAGES for folder in above.glob(pattern)]
    context = DistributionFinder.Context(name=_DISTRIBUTION, path=folders)
    for found in MetadataPathFinder.find_distributions(context):
        names = ("METADATA", Path(program).name)
        files = {file.name: str(found.locate_file(file)) for file in found.files or () if file.name in names}
        metadata, listed = (os.path.realpath(files.get(name, "")) for name in names)
        version = found.version if "Version" in found.metadata else ""
        if version and version.isprintable() and is_same(listed, program) and not changeable(metadata):
            yield version
