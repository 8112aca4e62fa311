"""The server's process: the program that its command names, the environment that it gets, and how it is started.

What differs between systems is in `process_posix` and `process_windows`: `ServerProcess`; `start`; and `end_by`, to end as the
server has ended.
"""

import os
import sys
from collections.abc import Mapping, Sequence

from mcpguard.errors import LOOK_AT_LIMITS, CommandError, ExitStatus
from mcpguard.light_typing import Final

if sys.platform == "win32":
    from mcpguard.relay.process_windows import ServerProcess, end_by, start
else:
    from mcpguard.relay.process_posix import ServerProcess, end_by, start

__all__ = ["ServerProcess", "cannot_start", "end_by", "environment", "find_program", "spawn"]

SECRETS: Final = frozenset({"MCPGUARD_TOKEN", "MCPGUARD_STORE", "MCPGUARD_STORE_PASSWORD"})
"""Variables that are kept from the server: a token, a password, and an address that may contain a password."""


def environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The server's environment: mcpguard's, without mcpguard's secrets."""
    return {key: value for key, value in environ.items() if key not in SECRETS}


def cannot_start(command: str, error: OSError) -> CommandError:
    """The error if the system has no descriptor or process left for a command."""
    return CommandError(f"cannot start {command}: {error.strerror}", LOOK_AT_LIMITS, ExitStatus.NOT_EXECUTABLE)


def spawn(argv: Sequence[str], environ: Mapping[str, str]) -> ServerProcess:
    """Start a server with pipes for input and output and mcpguard's stderr. It ends with mcpguard, as far as the system can.

    Call it while this process has one thread.

    Args:
        argv: Its command; the first word is looked up in `PATH`, on Windows with the endings of `PATHEXT` (`npx` is `npx.cmd`).
        environ: Its environment.

    Raises:
        CommandError: There is no such program, or it cannot be started. `ServerProcess.confirm` may raise, too.
    """
    program = find_program(argv[0], environ)
    try:
        return start(program, argv, environ)
    except OSError as error:  # in this process: a new one reports its own errors
        raise cannot_start(argv[0], error) from error


def find_program(command: str, environ: Mapping[str, str]) -> str:
    """The file that a command names.

    Raises:
        CommandError: There is no such file, or it is not executable.
    """
    found = _which(command, environ.get("PATH"))
    if found:
        return found
    if os.path.dirname(command) and os.path.exists(command):
        kind = "a folder" if os.path.isdir(command) else "not executable"
        raise CommandError(
            f"cannot run {command}: it is {kind}",
            "name a program, or an interpreter and a script",
            ExitStatus.NOT_EXECUTABLE,
        )
    if not command.strip():
        hint = "put the command after --: mcpguard run -- npx -y @acme/crm-server"
    elif " " in command and _which(command.split()[0], environ.get("PATH")):
        hint = "give each word of the command as an argument of its own"
    elif os.path.dirname(command):
        hint = "check the path"
    else:
        hint = "give its full path: clients start mcpguard with a short PATH"
    shown = command if command.strip() else repr(command)
    raise CommandError(f"cannot run {shown}: no such command", hint, ExitStatus.NOT_FOUND)


if sys.platform == "win32":
    import shutil

    def _which(command: str, path: str | None) -> str | None:
        return shutil.which(command, path=path)
else:

    def _which(command: str, path: str | None) -> str | None:
        """`shutil.which`, which takes two milliseconds to load."""
        names = [command]
        if not os.path.dirname(command):
            folders = os.defpath if path is None else path
            names = [os.path.join(folder, command) for folder in folders.split(os.pathsep)] if folders else []
        return next((name for name in names if os.path.isfile(name) and os.access(name, os.X_OK)), None)
