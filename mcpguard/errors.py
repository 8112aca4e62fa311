"""Errors that the user can fix, with their exit statuses.

Every such error is a `McpguardError`: one line, and usually a hint. Any other exception that leaves this package is a bug.
"""

from collections.abc import Collection, Sequence
from enum import IntEnum

from mcpguard.light_typing import Final, NamedTuple


class ExitStatus(IntEnum):
    """Exit statuses of `mcpguard`; 69 and 78 are from BSD's `sysexits.h`, 126, 127 and 130 from the shell."""

    OK = 0
    FAILURE = 1
    USAGE = 2
    STORE_UNAVAILABLE = 69
    CONFIGURATION = 78
    NOT_EXECUTABLE = 126
    NOT_FOUND = 127
    INTERRUPTED = 130


def status_text(status: int) -> str:
    """An exit status for the user, with the signal that it stands for: `status 137 (SIGKILL)`.

    Args:
        status: 128 + n for signal n, as a shell reports it; or -n, as `subprocess` does.
    """
    import signal

    status = status if status >= 0 else 128 - status
    names = {128 + one: f" ({one.name})" for one in signal.Signals}
    return f"status {status}{names.get(status, '')}"


LOOK_AT_LIMITS: Final = "look at the limits of this system: ulimit -a"
"""The hint when the system has no descriptor, thread or process left."""


class McpguardError(Exception):
    """A failure that the user can fix.

    Args:
        message: One line: what is wrong, and where.
        hint: One line: how to fix it.
    """

    exit_status = ExitStatus.FAILURE

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(McpguardError):
    """The command line is not valid."""

    exit_status = ExitStatus.USAGE


class ConfigError(McpguardError):
    """`config.toml`, a variable or an option has a value that is not valid.

    The message begins with the place of the value. If that is an option, the exit status is that of wrong usage.
    """

    exit_status = ExitStatus.CONFIGURATION

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message, hint)
        if message.startswith("--"):
            self.exit_status = ExitStatus.USAGE


class Problem(NamedTuple):
    """An error in the text of a policy.

    Attributes:
        message: What is wrong, without the place.
        hint: How to fix it.
        line: The line, from 1; 0 if the error is in none.
        column: The column, from 1, in characters.
        width: How many characters of the line are meant.
        text: The line's text.
        rule: The number of the rule, from 1; 0 if the error is in none.
    """

    message: str
    hint: str
    line: int = 0
    column: int = 0
    width: int = 0
    text: str = ""
    rule: int = 0


class PolicyError(McpguardError):
    """A policy file is not valid or cannot be read.

    Args:
        message: One line: what is wrong, and where. If there are several problems, the first.
        hint: One line: how to fix it.
        source: How messages name the file; empty if there are no problems.
        problems: Every problem in the file's text; empty if the text could not be read.
    """

    exit_status = ExitStatus.CONFIGURATION

    def __init__(self, message: str, hint: str = "", *, source: str = "", problems: Sequence[Problem] = ()) -> None:
        super().__init__(message, hint)
        self.source = source
        self.problems = tuple(problems)


class Unauthenticated(McpguardError):
    """The user is not verified: there is no token, or the token is not valid.

    The message and the hint contain nothing from the token, except times of a token whose signature was verified.
    """


class StoreUnavailable(McpguardError):
    """The store cannot be used now."""

    exit_status = ExitStatus.STORE_UNAVAILABLE


NOT_IN_TIME: Final = StoreUnavailable("it does not open in time", "if this goes on, raise store.timeout_ms")
"""The failure of a store that is still being opened."""


class StoreDamaged(StoreUnavailable):
    """A file of the store is damaged."""


class CommandError(McpguardError):
    """The server's command cannot be started.

    Args:
        message: One line: which command, and why it cannot be started.
        hint: One line: how to fix it.
        exit_status: `NOT_FOUND` or `NOT_EXECUTABLE`.
    """

    def __init__(self, message: str, hint: str, exit_status: ExitStatus) -> None:
        super().__init__(message, hint)
        self.exit_status = exit_status


def require(what: str, extra: str, *modules: str) -> None:
    """Check that modules are there which `pip install mcpguard-cli` leaves out.

    Args:
        what: What needs them, for the message.
        extra: The extra that installs them.
        modules: Their names.

    Raises:
        McpguardError: One is not installed.
    """
    from importlib import import_module

    for module in modules:
        try:
            import_module(module)
        except ImportError as error:
            raise McpguardError(
                f"{what} needs {module.replace('.', '-')}, which is not installed", installing(extra)
            ) from error


def installing(extra: str) -> str:
    """The hint that names the commands that install an extra."""
    how = "with uv tool install, pipx install --force or pip install"
    return f"install 'mcpguard-cli[{extra}]' {how}; name the extras that you use already, too, or uv removes them"


def closest_word(word: str, known: Collection[str], *, least: float = 0.6) -> str | None:
    """The known word that was probably meant, in any case; None if none is like `word` by at least `least`, from 0 to 1.

    >>> closest_word("LIMT", ("user", "limit"))
    'limit'
    """
    import difflib  # loaded only for an error

    by_lower = {text.lower(): text for text in known}
    return next((by_lower[near] for near in difflib.get_close_matches(word.lower(), by_lower, 1, least)), None)


def did_you_mean(word: str, known: Collection[str]) -> str:
    """The hint for an unknown word: the known one that was probably meant, else all of them; empty if there is none.

    >>> did_you_mean("usr", ("user", "limit")), did_you_mean("x", ("user", "limit"))
    ('did you mean user?', 'use one of: user limit')
    """
    near = closest_word(word, known)
    return f"did you mean {near}?" if near else f"use one of: {' '.join(known)}" if known else ""
