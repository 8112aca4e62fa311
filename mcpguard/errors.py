"""What a user can be told, and the exit status that goes with it.

Every failure that is the user's to mend is a `McpguardError`: one line, and a hint where there is one to give. Any other
exception that leaves this package is a bug.
"""

from enum import IntEnum


class ExitStatus(IntEnum):
    """Exit statuses of `mcpguard`; 69 and 78 are those of BSD's `sysexits.h`, 126 and 127 a shell's."""

    OK = 0
    FAILURE = 1
    USAGE = 2
    STORE_UNAVAILABLE = 69
    CONFIGURATION = 78
    NOT_EXECUTABLE = 126
    NOT_FOUND = 127
    INTERRUPTED = 130


class McpguardError(Exception):
    """A failure that the user can mend.

    Args:
        message: One line: what is wrong, and where.
        hint: One line: what would be right.
    """

    exit_status = ExitStatus.FAILURE

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(McpguardError):
    """The command line asks for something that cannot be."""

    exit_status = ExitStatus.USAGE


class ConfigError(McpguardError):
    """`config.toml`, the environment or an option does not hold what it should."""

    exit_status = ExitStatus.CONFIGURATION


class PolicyError(McpguardError):
    """A policy file cannot be taken up."""

    exit_status = ExitStatus.CONFIGURATION


class Unauthenticated(McpguardError):
    """Nobody is known to be calling: there is no token, or none that can be trusted.

    Neither the message nor the hint holds anything of the token, but for times of one whose signature was verified.
    """


class StoreUnavailable(McpguardError):
    """The store of counters and audit cannot be used now."""

    exit_status = ExitStatus.STORE_UNAVAILABLE


class StoreBusy(StoreUnavailable):
    """Others use the store, and it had no time for us. Nothing is wrong with it, and what was asked may be asked again."""


class CommandError(McpguardError):
    """The server's command cannot be started.

    Args:
        message: One line: which command, and why not.
        hint: One line: what would be right.
        exit_status: `NOT_FOUND` or `NOT_EXECUTABLE`, as a shell would have it.
    """

    def __init__(self, message: str, hint: str, exit_status: ExitStatus) -> None:
        super().__init__(message, hint)
        self.exit_status = exit_status
