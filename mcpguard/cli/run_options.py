"""What `mcpguard run` can be told, and how it is read without a library."""

from collections.abc import Sequence
from typing import Any, Final, NamedTuple


class Option(NamedTuple):
    """An option of `run`.

    Attributes:
        name: As it is written.
        key: What `start` calls it.
        metavar: How help names its value; empty if it has none.
        help: What help says.
        choices: The values that it can have; empty if any.
    """

    name: str
    key: str
    metavar: str
    help: str
    choices: tuple[str, ...] = ()

    @property
    def is_flag(self) -> bool:
        """Whether it has no value."""
        return not (self.metavar or self.choices)


_DENIALS: Final = ("auto", "error", "result")

OPTIONS: Final = (
    Option("--server", "server", "NAME", "The server's name in rules and audit. Default: from the command."),
    Option("--user", "user", "U", "Who calls. Default: MCPGUARD_USER, config.toml, the account."),
    Option("--agent", "agent", "A", "client::tier::name; an empty part is filled in."),
    Option("--policy", "policy", "F", "The policy file."),
    Option("--config", "config", "F", "The settings file."),
    Option(
        "--store",
        "store",
        "URL",
        "The store: sqlite:///absolute/path.db or redis://host/0; one with a password in config.toml.",
    ),
    Option("--observe", "observe", "", "Decide and log, deny nothing."),
    Option("--denials", "denials", "", "How a denial is sent: by the client (auto), error, tool result.", _DENIALS),
    Option("--quiet", "quiet", "", "Say nothing on stderr but errors."),
)
_BY_NAME: Final = {option.name: option for option in OPTIONS}


def parse(argv: Sequence[str]) -> dict[str, Any] | None:
    """The arguments of `start` that a command line means.

    Args:
        argv: `run`, options, perhaps `--`, and the server's command.

    Returns:
        The arguments; None if it is not `run`, or not without fault, or asks for help.
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
        if wanted[option.key] is not None:
            return None
        if not has_value:
            if not words:
                return None
            value = words.pop(0)
        wanted[option.key] = value
    known = all(wanted[option.key] in (None, *option.choices) for option in OPTIONS if option.choices)
    return wanted | {"argv": words} if words and known else None
