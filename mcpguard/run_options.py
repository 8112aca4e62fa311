"""The options of `mcpguard run`, and a parser for them that needs no library."""

from collections.abc import Sequence
from typing import Any, Final, NamedTuple


class Option(NamedTuple):
    """An option of `run`.

    Attributes:
        name: The option on the command line, such as `--user`.
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
        return self.name[2:]

    @property
    def is_flag(self) -> bool:
        """Whether the option has no value."""
        return not (self.metavar or self.choices)


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
    Option("--observe", "", "Decide and log, but deny nothing."),
    Option(
        "--denials",
        "",
        "Answer a denied call with an error, with a tool result, or depending on the client (auto).",
        DENIALS,
    ),
    Option("--quiet", "", "Write only errors to stderr."),
)
_BY_NAME: Final = {option.name: option for option in OPTIONS}


def parse(argv: Sequence[str]) -> dict[str, Any] | None:
    """Parse the command line of `run`.

    Args:
        argv: `run`, options, perhaps `--`, and the server's command.

    Returns:
        The arguments of `start`; None if this is another command, has an error, or asks for help.
    """
    words = list(argv)
    if not words or words.pop(0) != "run":
        return None
    wanted: dict[str, Any] = {option.key: False if option.is_flag else None for option in OPTIONS}
    while words and words[0].startswith("-") and words[0] != "-":
        word = words.pop(0)
        if word == "--":
            break
        name, has_value, value = word.partition("=")
        option = _BY_NAME.get(name)
        if option is None:
            return None
        if option.is_flag:
            if has_value:
                return None
            wanted[option.key] = True
            continue
        if not has_value:
            if not words:
                return None
            value = words.pop(0)
        wanted[option.key] = value
    known = all(wanted[option.key] in (None, *option.choices) for option in OPTIONS if option.choices)
    return wanted | {"argv": words} if words and known else None
