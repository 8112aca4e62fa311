"""Options that several commands have."""

import sys
from collections.abc import Callable
from typing import Any, TypeVar

import click

from mcpguard.cli.names import files, seen
from mcpguard.errors import UsageError

_F = TypeVar("_F", bound=Callable[..., Any])

policy_option = click.option(
    "--policy", metavar="F", shell_complete=files, help="The policy file. Default: MCPGUARD_POLICY, the account's file."
)
store_option = click.option("--store", metavar="URL", help="The store. Default: MCPGUARD_STORE, config.toml, the account's.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
yes_option = click.option("--yes", is_flag=True, help="Do not ask for confirmation.")


def name_option(key: str, metavar: str, text: str, *, with_patterns: bool = False, **more: Any) -> Callable[[_F], _F]:
    """An option for a name, such as `--user`. A shell completes it.

    Args:
        key: The kind of name: see `names.seen`.
        metavar: The name of its value in the help.
        text: Its text in the help.
        with_patterns: Whether the patterns of rules are completed, too.
        more: Further arguments for `click.option`.
    """
    complete = seen(key, with_patterns=with_patterns)
    return click.option(f"--{key}", metavar=metavar, shell_complete=complete, help=text, **more)


def all_of(*options: Callable[[_F], _F]) -> Callable[[_F], _F]:
    """One decorator that adds several options, in this order."""

    def decorated(function: _F) -> _F:
        for option in reversed(options):
            function = option(function)
        return function

    return decorated


def require_terminal(command: str, hint: str) -> None:
    """Refuse to ask for confirmation where nobody can answer.

    Raises:
        UsageError: There is no terminal.
    """
    if not (sys.stdin and sys.stdin.isatty()):
        raise UsageError(f"{command} asks for confirmation, and there is no terminal", hint)
