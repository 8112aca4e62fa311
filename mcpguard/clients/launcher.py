"""Chooses the command that `install` writes into entries: a path that outlives upgrades, and the shell's choices as options."""

import contextlib
import itertools
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path

from mcpguard.config import SWITCHES, switch
from mcpguard.errors import McpguardError, UsageError
from mcpguard.files import StrPath, named_path
from mcpguard.light_typing import Final, NamedTuple
from mcpguard.stores.address import has_password
from mcpguard.text.redaction import holds_token

PROGRAM: Final = "mcpguard.exe" if sys.platform == "win32" else "mcpguard"
"""The name of mcpguard's program."""

_OPTIONS: Final = ("config", "policy", "store", "user", "agent", "denials")
_PATHS: Final = ("config", "policy")
_CACHES: Final = ("/archive-v0/", "/.cache/", "/uv/cache/", "/pipx/cache/", "/library/caches/")
"""Folders of caches, in small letters: uv's, that of Linux, those of uv and pipx on Windows, and that of macOS."""

_NOT_OF_HOOKS: Final = ("--denials", "--quiet")
"""The options of `run` that a deciding hook does not have."""

_SECRETS: Final = {
    "MCPGUARD_TOKEN": "write the token into a file, name it as token_file in config.toml, and unset MCPGUARD_TOKEN",
    "MCPGUARD_STORE_PASSWORD": "put the store's URL with its password into config.toml, and unset MCPGUARD_STORE_PASSWORD",
}
_WITHOUT_OPTION: Final = {
    "MCPGUARD_HOME": "set MCPGUARD_CONFIG, MCPGUARD_POLICY and MCPGUARD_STORE instead",
    "MCPGUARD_NAMESPACE": "write namespace into config.toml",
    "MCPGUARD_SERVER": "each entry names its own server",
}


class Launcher(NamedTuple):
    """The command that starts mcpguard.

    Attributes:
        program: The absolute path of mcpguard.
        options: Options of `run` for what the shell's variables choose, each with its value.
        warnings: What the user should know about them.
    """

    program: str
    options: tuple[tuple[str, ...], ...] = ()
    warnings: tuple[str, ...] = ()

    def words(self, server: str) -> tuple[str, ...]:
        """The words that go before a server's own command."""
        return self.program, "run", "--server", server, *(word for option in self.options for word in option), "--"

    def hook(self, client: str, old: str = "", *, decides: bool = False) -> str:
        """The command line of a client's hook. It must use the same store as the entries.

        Args:
            client: The client.
            old: The line of a hook whose program is gone. Only the program is replaced, if a shell reads it as it stands. If
                the hook is to decide, the line of one that leaves notes, whose options stay.
            decides: Whether the hook is to decide.
        """
        if decides:
            return self._deciding(client, old or self.hook(client))
        program = _line(self.program)
        if sys.platform == "win32" and client == "copilot" and program.startswith('"'):
            program = f"& {program}"  # PowerShell
        gone = program_of(old)
        if gone and (place := re.search(rf"""(?:^& )?(["']?){re.escape(gone)}\1(?=\s+hook\b)""", old)):
            return old[: place.start()] + program + old[place.end() :]
        options = [word for option in self.options if option[0] in ("--config", "--store") for word in option]
        return f"{program} {_line('hook', client, *options)}"

    def _deciding(self, client: str, line: str) -> str:
        """The line of a hook that leaves notes with what makes it decide, and with all options."""
        if "--enforce" not in words_of(line):
            line = re.sub(rf"(\bhook\s+{client})\b", r"\1 --enforce", line, count=1)
        known = [option for option in self.options if option[0] not in _NOT_OF_HOOKS and option[0] not in words_of(line)]
        return " ".join([line, *(_line(*option) for option in known)])


def _line(*words: str) -> str:
    if sys.platform != "win32":
        return shlex.join(words)
    return subprocess.list2cmdline([word.replace("\\", "/") for word in words])  # a POSIX shell may run it


def program_of(command: str) -> str:
    """The word before `hook` in a hook's command line, or the first word; empty if it is not a command line."""
    words = words_of(command)
    return next((word for word, after in itertools.pairwise(words) if after == "hook"), "".join(words[:1]))


def words_of(command: str) -> list[str]:
    """The words of a command line that `Launcher.hook` has written; none if it is not a command line."""
    try:
        return shlex.split(command.removeprefix("& "))
    except ValueError:
        return []


def launcher(environ: Mapping[str, str]) -> Launcher:
    """The command for this installation and this environment.

    Raises:
        McpguardError: mcpguard is not installed as a program.
        UsageError: A variable holds a secret, which must not be written into a client's file.
        ConfigError: A variable is not valid.
    """
    program = own_program(environ)
    if program is None:
        hint = "install it: uv tool install mcpguard-cli"
        raise McpguardError(f"there is no program mcpguard in the environment of {sys.executable}", hint)
    warnings, options = [_warning_of_place(program)], _chosen(environ)
    for name, hint in _WITHOUT_OPTION.items():
        if environ.get(name):
            warnings.append(f"{name} is set here, but clients do not pass it on to the servers: {hint}")
    return Launcher(str(program), tuple(options), tuple(filter(None, warnings)))


def own_program(environ: Mapping[str, str]) -> Path | None:
    """The path of this mcpguard that outlives upgrades; None if it is not installed as a program."""
    folders = [Path(sysconfig.get_path("scripts")), Path(sys.executable).parent]
    if os.path.dirname(sys.argv[0]):  # noqa: PTH120 - not `-c`: the working folder may be somebody else's
        folders.append(Path(sys.argv[0]).absolute().parent)
    script = next((folder / PROGRAM for folder in folders if (folder / PROGRAM).is_file()), None)
    return stable(script, environ) if script else None


def stable(script: Path, environ: Mapping[str, str]) -> Path:
    """The link to a program that `uv tool`, `pipx` or a package manager keeps through upgrades; else the program itself."""
    folder = Path(os.path.realpath(script)).parent
    for shim in _shims(script, environ):
        if os.path.isfile(shim) and is_same(shim, script) and not is_same(shim.parent, folder):  # noqa: PTH113 - as in `find`
            return shim
    return script


def _shims(script: Path, environ: Mapping[str, str]) -> Iterator[Path]:
    """Where a stable link may be, the best guess first."""
    try:
        receipt = tomllib.loads((script.parent.parent / "uv-receipt.toml").read_text("utf-8"))
        yield from (Path(one["install-path"]) for one in receipt["tool"]["entrypoints"] if one["name"] == script.stem)
    except (OSError, ValueError, LookupError, TypeError):
        pass  # not installed by `uv tool`
    folders = [environ.get(name) for name in ("UV_TOOL_BIN_DIR", "PIPX_BIN_DIR", "XDG_BIN_HOME")]
    folders += [os.path.expanduser("~/.local/bin"), *environ.get("PATH", "").split(os.pathsep)]  # noqa: PTH111
    yield from (Path(folder) / script.name for folder in folders if folder and os.path.isabs(folder))  # noqa: PTH117


def _warning_of_place(program: Path) -> str:
    """A warning if the program lies where it will not stay; else empty."""
    real = Path(os.path.realpath(program))
    hint = "install mcpguard with uv tool or pipx, then run mcpguard uninstall and mcpguard install"
    with contextlib.suppress(OSError):  # no folder has room for a temporary file
        temporary = Path(os.path.realpath(tempfile.gettempdir()))
        if temporary in real.parents or temporary in program.parents:
            return f"{program} is in a temporary folder: {hint}"
    if any(cache in real.as_posix().lower() for cache in _CACHES):
        return f"{program} is in a cache, which may be cleared: {hint}"
    home = Path(os.path.expanduser("~"))  # noqa: PTH111 - some people keep all of it in git
    checkouts = (folder for folder in program.parents if (folder / ".git").exists() and not is_same(folder, home))
    checkout = next((folder for folder in checkouts if not (folder / "Cellar").exists()), None)  # Homebrew keeps itself in git
    return f"{program} is in the checkout {checkout}: {hint}" if checkout else ""


def _chosen(environ: Mapping[str, str]) -> list[tuple[str, ...]]:
    """Options of `run` for what the variables choose.

    Raises:
        UsageError: A variable holds a secret.
        ConfigError: A variable is not valid.
    """
    for name, hint in _SECRETS.items():
        if environ.get(name):
            raise UsageError(f"{name} is set here, and a secret must not be written into a client's file", hint)
    options: list[tuple[str, ...]] = []
    for key in _OPTIONS:
        name = f"MCPGUARD_{key.upper()}"
        value = environ.get(name)
        if not value:
            continue
        if holds_token(value) or has_password(value):
            hint = f"put it into config.toml, and unset {name}"
            raise UsageError(f"{name} holds a secret, which must not be written into a client's file", hint)
        options.append((f"--{key}", str(named_path(value, where=name)) if key in _PATHS else value))
    options += [(f"--{key}",) for key in SWITCHES if switch(f"MCPGUARD_{key.upper()}", environ)]
    return options


def find(program: str, environ: Mapping[str, str], folder: Path = Path()) -> Path | None:
    """The file of a program that an entry names; None if it is gone. A bare name is looked for on `PATH`.

    Args:
        program: Its name or path.
        environ: The environment.
        folder: Where a relative path begins.
    """
    found = shutil.which(program, path=environ.get("PATH")) if os.path.basename(program) == program else program  # noqa: PTH119
    file = os.path.join(folder, found or "")  # noqa: PTH118
    return Path(file) if found and os.path.isfile(file) else None  # noqa: PTH113 - `Path.is_file` raises without permission


def is_same(one: StrPath, other: StrPath) -> bool:
    """Whether two paths lead to the same file or folder. Some systems ignore case, and how a letter is composed."""
    try:
        return os.path.samefile(one, other)  # noqa: PTH121 - as in `find`
    except OSError:  # one of them does not exist
        return os.path.realpath(one) == os.path.realpath(other)
    except ValueError:  # the text is not a path, because of a U+0000 or half a character
        return False


def is_relative(program: str) -> bool:
    """Whether a program's path begins in a folder that somebody else chooses. A bare name is looked for on `PATH` instead."""
    return not os.path.isabs(program) and os.path.basename(program) != program  # noqa: PTH117, PTH119


def may_vary(program: str) -> bool:
    """Whether a program's path has a variable of the client, so that only the client knows the path."""
    return any(mark in program for mark in ("$", "{", "%"))
