"""Options that several commands have, and what a rule's options say."""

from collections.abc import Callable
from typing import Any, Final, TypeVar

import click

from mcpguard.cli._seen import files, seen, words
from mcpguard.errors import PolicyError, UsageError
from mcpguard.policy.model import PER, Cost, Rule
from mcpguard.policy.parse import parse_cost, parse_rule

_F = TypeVar("_F", bound=Callable[..., Any])
_T = TypeVar("_T")
_COMMAND_LINE: Final = "command line"

policy_option = click.option(
    "--policy", metavar="F", shell_complete=files, help="The policy file. Default: MCPGUARD_POLICY, the account's file."
)
store_option = click.option("--store", metavar="URL", help="The store. Default: MCPGUARD_STORE, config.toml, the account's.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


def all_of(*options: Callable[[_F], _F]) -> Callable[[_F], _F]:
    """One decorator that adds several options, in this order."""

    def decorated(function: _F) -> _F:
        for option in reversed(options):
            function = option(function)
        return function

    return decorated


rule_options = all_of(
    click.option("--user", metavar="G", shell_complete=seen("user", with_patterns=True), help="A user, or a pattern with *."),
    click.option(
        "--agent",
        metavar="G",
        shell_complete=seen("agent", with_patterns=True),
        help="An agent, client::tier::name; each part is a name or a pattern.",
    ),
    click.option("--tool", metavar="G", shell_complete=seen("tool", with_patterns=True), help="A tool, or a pattern."),
    click.option(
        "--server", metavar="G", shell_complete=seen("server", with_patterns=True), help="A server's name, or a pattern."
    ),
    click.option(
        "--role",
        metavar="G",
        multiple=True,
        shell_complete=seen("role", with_patterns=True),
        help="A role of the verified token. Repeat it to require several.",
    ),
    click.option(
        "--scope",
        metavar="G",
        multiple=True,
        shell_complete=seen("scope", with_patterns=True),
        help="A scope of the verified token. Repeat it to require several.",
    ),
    click.option(
        "--per",
        metavar="LIST",
        shell_complete=words(*PER, "none"),
        help="What has a count of its own: some of user,agent,tool,server,arguments; or none. Default: those that the rule"
        " selects by.",
    ),
    policy_option,
)


def rule_table(selectors: dict[str, Any]) -> dict[str, Any]:
    """The TOML table of a rule without its limit.

    Args:
        selectors: The values of `rule_options` except `--policy`.

    Raises:
        UsageError: `--per` names an unknown axis.
    """
    per = selectors.pop("per")
    table = {key: value for key, value in selectors.items() if value is not None and value != ()}
    for key in table.keys() & {"role", "scope"}:
        table[key] = table[key][0] if len(table[key]) == 1 else list(table[key])
    if per is not None:
        table["per"] = [] if per.strip() == "none" else [axis.strip() for axis in per.split(",")]
        unknown = next((axis for axis in table["per"] if axis not in PER), None)
        if unknown is not None:
            raise UsageError(f"--per: unknown axis {unknown!r}", f"write some of {','.join(PER)}, or none")
    return table


def rule_of(table: dict[str, Any]) -> Rule:
    """The rule that a command line describes.

    Raises:
        UsageError: The rule is not valid.
    """
    return _parsed(parse_rule, table)


def cost_of(table: dict[str, Any]) -> Cost:
    """The cost that a command line describes.

    Raises:
        UsageError: The cost is not valid.
    """
    return _parsed(parse_cost, table)


def _parsed(parse: Callable[..., _T], table: dict[str, Any]) -> _T:
    for key, value in table.items():
        for text in value if isinstance(value, list) else [value]:
            if any("\ud800" <= char <= "\udfff" for char in str(text)):  # Python decodes bytes that are not UTF-8 to surrogates
                hint = "put * in place of the characters that are not UTF-8"
                raise UsageError(f"--{key}: {text!r} is not UTF-8, so a policy file cannot hold it", hint)
    try:
        return parse(table, where=_COMMAND_LINE)
    except PolicyError as error:
        raise UsageError(error.message.removeprefix(f"{_COMMAND_LINE}: "), error.hint) from error
