"""The options of `mcpguard run` and `mcpguard hook`, and a parser for them that needs no library."""

import re
from collections.abc import Sequence

from mcpguard.light_typing import Any, Final, NamedTuple


class Option(NamedTuple):
    """An option of `run`.

    Attributes:
        name: The option on the command line, such as `--user`. A flag may be followed by its opposite: `--observe/--enforce`.
        metavar: The name of its value in the help; empty if it has no value.
        help: Its text in the help.
        choices: The allowed values; empty if any value is allowed.
    """

    name: str
    metavar: str
    help: str
    choices: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """The parameter of `start`."""
        return self.name[2:].partition("/")[0]

    @property
    def is_flag(self) -> bool:
        """Whether the option has no value."""
        return not (self.metavar or self.choices)

    @property
    def default(self) -> bool | None:
        """The value of an option that is not given."""
        return False if self.is_flag and "/" not in self.name else None


DENIALS: Final = ("auto", "error", "result")
"""The values of `--denials`."""

OPTIONS: Final = (
    Option("--server", "NAME", "The server's name in rules and in the audit log. Default: derived from the command."),
    Option("--user", "U", "The user who calls. Default: MCPGUARD_USER, config.toml, the OS account."),
    Option("--agent", "A", "The agent, client::tier::name. mcpguard fills in empty parts."),
    Option("--policy", "F", "The policy file. Default: MCPGUARD_POLICY, the account's file."),
    Option("--config", "F", "The settings file. Default: MCPGUARD_CONFIG, the account's config.toml."),
    Option(
        "--store",
        "URL",
        "The store: sqlite:///absolute/path.db or redis://host/0. Put a URL with a password into config.toml instead.",
    ),
    Option("--observe/--enforce", "", "Decide and log, but deny nothing; or deny, also if MCPGUARD_OBSERVE is set."),
    Option(
        "--denials",
        "",
        "Answer a denied call with an error, with a tool result, or depending on the client (auto).",
        DENIALS,
    ),
    Option("--quiet", "", "Write only errors to stderr."),
)

HOOK_CLIENTS: Final = ("claude-code", "codex", "copilot", "cursor", "gemini")
"""The names of clients that `hook` knows."""

HOOK_OPTIONS: Final = (
    Option("--enforce", "", "Decide each call that the hook shows, and stop those that the policy denies."),
    *[option for option in OPTIONS if option.key in ("user", "agent", "policy", "config", "store")],
    Option("--observe", "", "Decide and log, but deny nothing."),
)
"""The options of `hook NAME`."""

_STARTS_RUN: Final = r"""(?:^|[\s/\\'"])mcpguard(?:-cli)?(?:\.exe|[\[@=:]\S{0,100})?['"]?\s+run(?:\s|$)"""
"""The program, or the package that `pipx run` and an image of a container name, perhaps with an extra or a version."""

_FOLDER: Final = r"(?:--(?:directory|project|prefix|cwd)|-C)[\s=]\S+"
"""An option of a launcher for a folder, which can have the program's name: `uv --directory /src/mcpguard run server.py`."""


def starts_run(command: str) -> bool:
    """Whether a command line starts `mcpguard run`, perhaps through another program."""
    return re.search(_STARTS_RUN, re.sub(_FOLDER, "", command)) is not None


def parse(argv: Sequence[str]) -> dict[str, Any] | None:
    """Parse the command line of `run`.

    Args:
        argv: `run`, options, perhaps `--`, and the server's command.

    Returns:
        The arguments of `start`; None if this is another command, has an error, or asks for help.
    """
    if not argv or argv[0] != "run" or (parsed := _parsed(argv[1:], OPTIONS)) is None:
        return None
    wanted, words = parsed
    return wanted | {"argv": words} if words else None


def parse_hook(argv: Sequence[str]) -> dict[str, Any] | None:
    """Parse the command line of `hook`.

    Args:
        argv: `hook`, the name, and options.

    Returns:
        The arguments of `hook.run.run`; None if this is another command, has an error, or asks for help.
    """
    is_hook = len(argv) > 1 and argv[0] == "hook" and argv[1] in HOOK_CLIENTS
    parsed = _parsed(argv[2:], HOOK_OPTIONS) if is_hook else None
    if parsed is None:
        return None
    wanted, words = parsed
    return None if words else wanted | {"name": argv[1]}


def _parsed(argv: Sequence[str], options: Sequence[Option]) -> tuple[dict[str, Any], list[str]] | None:
    """The values of options, and the words after them; None if there is an error."""
    words, by_name = list(argv), {name: option for option in options for name in option.name.split("/")}
    wanted: dict[str, Any] = {option.key: option.default for option in options}
    while words and words[0].startswith("-") and words[0] != "-":
        word = words.pop(0)
        if word == "--":
            break
        name, has_value, value = word.partition("=")
        option = by_name.get(name)
        if option is None:
            return None
        if option.is_flag:
            if has_value:
                return None
            wanted[option.key] = option.name.startswith(name)
            continue
        if not has_value:
            if not words:
                return None
            value = words.pop(0)
        wanted[option.key] = value
    known = all(wanted[option.key] in (None, *option.choices) for option in options if option.choices)
    return (wanted, words) if known else None
