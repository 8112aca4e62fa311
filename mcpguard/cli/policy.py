"""`mcpguard policy`: show, check and edit limits."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from mcpguard import config
from mcpguard.cli import _policy_show
from mcpguard.cli._command import Group
from mcpguard.cli._store import tolerant_output
from mcpguard.config import Settings
from mcpguard.core.identity import parse_agent
from mcpguard.core.policy import AXES, Policy, Rule
from mcpguard.core.policy_explain import counted_in_grains, sentence, tier_warning, warnings
from mcpguard.core.policy_parse import STARTER, parse, parse_rule
from mcpguard.core.text import plural, printable
from mcpguard.errors import ConfigError, McpguardError, PolicyError, UsageError
from mcpguard.files import exposed
from mcpguard.policy_file import load

_F = TypeVar("_F", bound=Callable[..., Any])
_COMMAND_LINE: Final = "command line"
_file_option = click.option("--policy", metavar="F", help="The policy file. Default: MCPGUARD_POLICY, the account's.")
_SELECTORS: Final = (
    click.option("--user", metavar="G", help="A user, or a pattern with *."),
    click.option("--agent", metavar="G", help="client::tier::name, each a text or a pattern."),
    click.option("--tool", metavar="G", help="A tool, or a pattern."),
    click.option("--server", metavar="G", help="A server's configured name, or a pattern."),
    click.option("--role", metavar="G", multiple=True, help="A role of the verified token; again for more, all needed."),
    click.option("--scope", metavar="G", multiple=True, help="A scope of the verified token; likewise."),
    click.option("--per", metavar="AXES", help="Split by, such as user,tool; or none. Default: what is selected on."),
    _file_option,
)


def _selectors(function: _F) -> _F:
    for option in reversed(_SELECTORS):
        function = option(function)
    return function


@click.group("policy", Group, short_help="Show, check and edit limits.")
def command() -> None:
    """Show, check and edit the policy: how often which tools may be called, by whom.

    A running wrapper obeys an edit from its next call on. A file over 16 KiB (about 200 rules) is parsed beside the calls: a
    wrapper obeys it from within moments of that call on.

    \b
    Examples:
      mcpguard policy show
      mcpguard policy set --user '*' --tool search_customers 20/1m 100/1h
    """
    tolerant_output()


@command.command("set", short_help="Set a limit.")
@_selectors
@click.option("--name", metavar="TEXT", help="What you call the rule; '' for no name.")
@click.argument("limits", nargs=-1, required=True, metavar="LIMIT...")
def set_(limits: tuple[str, ...], name: str | None, policy: str | None, **selectors: Any) -> None:
    """Limit the calls that all the given selectors match; without any, all calls.

    A LIMIT is calls per window, such as 5/1m or 100/90m (s m h d w), or deny, or unlimited. The rule with the same
    selectors gets the new limit, else a rule is added. The file keeps its comments and order.

    \b
    Examples:
      mcpguard policy set --user '*' --tool search_customers 20/1m 100/1h
      mcpguard policy set --user bob@acme.com --tool search_customers 10/1h
      mcpguard policy set --user '*' --agent '*::subagent::*' --per user 60/1m
      mcpguard policy set --tool delete_user deny
    """
    table = _table(selectors)
    table["limit"] = limits[0] if len(limits) == 1 else list(limits)
    if name is not None:
        table["name"] = name
    _rule(table)
    from mcpguard.policy_editing import put

    settings = config.load(os.environ, policy=policy)
    before, after, at = put(settings.policy, table)
    replaced = at < len(before.rules)
    what = f"rule {at + 1}, which was {before.rules[at].limit_text}" if replaced else f"new rule {at + 1}"
    click.echo(printable(f"{settings.policy}: {what}"))
    click.echo(printable(sentence(after.rules[at])))
    for consequence in counted_in_grains(after.rules[at], [before.rules[at]] if replaced else before.rules):
        click.echo(consequence)
    _warn(before, after)


def _warn(before: Policy, after: Policy) -> None:
    """Say on stderr what is odd about a policy and was not before."""
    known = set(warnings(before))
    for warning in warnings(after):
        if warning not in known:
            _warning(warning)


def _warning(text: str) -> None:
    click.echo(printable(f"warning: {text}"), err=True)


@command.command(short_help="Remove a rule.")
@_selectors
def unset(policy: str | None, **selectors: Any) -> None:
    """Remove the rule with exactly these selectors.

    \b
    Example:
      mcpguard policy unset --user bob@acme.com --tool search_customers
    """
    rule = _rule(_table(selectors) | {"limit": "unlimited"})
    from mcpguard.policy_editing import take_out

    settings = config.load(os.environ, policy=policy)
    found = take_out(settings.policy, rule, named=settings.policy_named)
    if found is None:
        policy_now, _ = load(settings.policy, named=True)
        raise McpguardError(f"{settings.policy}: no rule {rule.text}", _nearest(rule, policy_now.rules))
    gone, after = found
    click.echo(printable(f"{settings.policy}: removed {gone.text}, which was {gone.limit_text}"))
    for consequence in dict.fromkeys(one for rule in after.rules for one in counted_in_grains(rule, [gone])):
        click.echo(consequence)
    if not after.rules:
        click.echo(_policy_show.NO_RULES)


def _nearest(rule: Rule, rules: tuple[Rule, ...]) -> str:
    import difflib  # on the way to an error only

    texts = [other.text for other in rules]
    near = difflib.get_close_matches(rule.text, texts, 3, 0.3) or texts[:3]
    return f"the nearest: {'; '.join(near)}" if near else "the file has no rules"


def _table(selectors: dict[str, Any]) -> dict[str, Any]:
    """A rule's table but for its limit, as the options give it."""
    table: dict[str, Any] = {}
    for key, value in selectors.items():
        if key in {"role", "scope"}:
            if value:
                table[key] = value[0] if len(value) == 1 else list(value)
        elif value is not None and key != "per":
            table[key] = value
    per = selectors["per"]
    if per is not None:
        axes = [] if per.strip() == "none" else [axis.strip() for axis in per.split(",")]
        unknown = next((axis for axis in axes if axis not in AXES), None)
        if unknown is not None:
            raise UsageError(f"--per: unknown axis {unknown!r}", f"some of {' '.join(AXES)} with commas, or none")
        table["per"] = axes
    return table


def _rule(table: dict[str, Any]) -> Rule:
    """The rule of a command line.

    Raises:
        UsageError: It cannot be.
    """
    for key, value in table.items():
        for text in value if isinstance(value, list) else [value]:
            if any("\ud800" <= char <= "\udfff" for char in text):  # how Python tells of bytes that are not UTF-8
                raise UsageError(f"--{key}: {text!r} is not UTF-8, as a policy file has to be", "write a pattern with * for it")
    try:
        return parse_rule(table, where=_COMMAND_LINE)
    except PolicyError as error:
        raise UsageError(error.message.removeprefix(f"{_COMMAND_LINE}: "), error.hint) from error


@command.command(short_help="Show the policy in words.")
@_file_option
@click.option("--json", "as_json", is_flag=True, help="As one JSON object.")
def show(policy: str | None, as_json: bool) -> None:
    """Show where the policy comes from, and each rule with a sentence that says what it means.

    \b
    Examples:
      mcpguard policy show
      mcpguard policy show --json
    """
    settings = config.load(os.environ, policy=policy)
    found, is_starter = load(settings.policy, named=settings.policy_named)
    if as_json:
        click.echo(json.dumps(_policy_show.as_json(found, settings.policy, is_starter=is_starter), indent=2))
        return
    _say_source(found, settings.policy, is_starter=is_starter)
    click.echo()
    if not found.rules:
        click.echo(_policy_show.NO_RULES)
    elif sys.stdout.isatty():
        _policy_show.print_table(found)
    else:
        _policy_show.print_plain(found)


def _say_source(policy: Policy, path: Path, *, is_starter: bool) -> None:
    click.echo(printable(f"starter policy: no file at {path}" if is_starter else f"policy: {path}"))
    if policy.observe:
        click.echo("mode: observe (all rules report only, nothing is denied)")


@command.command(short_help="Explain what the policy makes of a call.")
@click.option("--user", metavar="U", help="Who calls. Default: the token, MCPGUARD_USER, config.toml, the account.")
@click.option("--agent", metavar="A", help="client::tier::name. Default: MCPGUARD_AGENT, config.toml, an unknown client.")
@click.option("--tool", metavar="T", required=True, help="Which tool is called.")
@click.option("--server", metavar="S", help="Of which server. Default: MCPGUARD_SERVER, that of the tool's last call.")
@click.option("--role", metavar="R", multiple=True, help="A role that the caller has; again for more.")
@click.option("--scope", metavar="S", multiple=True, help="A scope that the caller has; again for more.")
@click.option("--token", metavar="[FILE]", is_flag=False, flag_value="", help="Who the token names; FILE: another than usual.")
@_file_option
@click.option("--config", "config_file", metavar="F", help="The settings file.")
@click.option("--store", metavar="URL", help="Where the counters are. Default: MCPGUARD_STORE, config.toml, the account's.")
@click.option("--json", "as_json", is_flag=True, help="As one JSON object.")
def explain(
    tool: str, server: str | None, role: tuple[str, ...], scope: tuple[str, ...], token: str | None, config_file: str | None,
    as_json: bool, user: str | None, agent: str | None, **options: str | None,
) -> None:  # fmt: skip
    """Explain what the policy makes of one call, and what is left for it now. Nothing is counted.

    It tells which rules apply, which yield and to which, which do not match and why, what the counters hold, and what the
    next such call would get. What is not given is as a wrapper that is started here would have it, and an agent that the
    token names is not --agent's to change.

    \b
    Examples:
      mcpguard policy explain --user bob@acme.com --tool search_customers
      mcpguard policy explain --agent Cursor::background::nightly --tool search
      mcpguard policy explain --token --tool delete_user
    """
    from mcpguard.cli import _policy_why
    from mcpguard.cli._places import place
    from mcpguard.policy_explaining import caller
    from mcpguard.policy_explaining import explain as explained

    if token is not None and user is not None:
        raise UsageError("--user and --token: both name the user", "leave one of them out")
    given = [("--user", user), ("--agent", agent), ("--tool", tool), ("--server", server)]
    _policy_why.require_names([*given, *(("--role", one) for one in role), *(("--scope", one) for one in scope)])
    settings = config.load(os.environ, config=config_file, server=server, **options)
    policy, is_starter = load(settings.policy, named=settings.policy_named)
    who = caller(settings, user=user, agent=agent, token=token, roles=role, scopes=scope, notify=_warning)
    places = {key: place(key, {"user": user, "agent": agent}) for key in ("user", "agent")}
    called = server or os.environ.get("MCPGUARD_SERVER")
    found = explained(settings, policy, who, tool=tool, server=called, places=places, notify=_warning)
    if as_json:
        click.echo(json.dumps(_policy_why.as_json(found, policy, settings.policy, is_starter=is_starter), indent=2))
        return
    _say_source(policy, settings.policy, is_starter=is_starter)
    _policy_why.print_subject(found)
    if sys.stdout.isatty():
        _policy_why.print_table(found)
    else:
        _policy_why.print_plain(found)
    _policy_why.print_next(found)


@command.command(short_help="Check a policy file.")
@click.argument("file", required=False, metavar="[FILE]")
@_file_option
@click.option("--json", "as_json", is_flag=True, help="As one JSON object.")
def check(file: str | None, policy: str | None, as_json: bool) -> None:
    """Check FILE, or the policy in force: whether it can be taken up, and what is odd about it.

    The exit status is 0 if it can be taken up, with or without warnings, else 78. If there is an audit, rules that have
    matched none of its newest calls are told too, and so is a configured agent whose tier no rule matches, and who else may
    change the policy, config.toml or the store.

    \b
    Example:
      mcpguard policy check examples/policy.toml
    """
    from mcpguard.policy_explaining import never_matched

    settings = config.load(os.environ, policy=policy)
    path = settings.policy if file is None else Path(file)
    found, is_starter = load(path, named=settings.policy_named or file is not None)
    unmatched = never_matched(found, settings) if file is None and not is_starter else []
    unlimited = tier_warning(found, _configured_tier(settings)) if file is None else None
    files = settings.files if file is None else [path]
    told = [*warnings(found), *([unlimited] if unlimited else []), *unmatched, *exposed(files)]
    if as_json:
        result = {"file": None if is_starter else str(path), "starter": is_starter, "rules": len(found.rules), "warnings": told}
        click.echo(json.dumps(result, indent=2))
        return
    source = f"starter policy (no file at {path})" if is_starter else str(path)
    click.echo(printable(f"{source}: OK, {_count(found)}"))
    for warning in told:
        click.echo(printable(f"warning: {warning}"))


def _configured_tier(settings: Settings) -> str | None:
    try:
        return parse_agent(settings.agent, where="agent").tier if settings.agent else None
    except ConfigError:
        return None  # `run` says so


def _count(policy: Policy) -> str:
    return plural(len(policy.rules), "rule") if policy.rules else _policy_show.NO_RULES


@command.command(short_help="Write the starter policy to a file.")
@_file_option
def init(policy: str | None) -> None:
    """Write a policy file with the starter rules, which are in force where there is no file.

    \b
    Example:
      mcpguard policy init
    """
    path = config.load(os.environ, policy=policy).policy
    from mcpguard.policy_editing import begin

    if not begin(path):
        raise McpguardError(f"{path} exists already", "change it with mcpguard policy set, or mcpguard policy edit")
    click.echo(printable(f"{path}: {len(parse(STARTER).rules)} starter rules"))


@command.command("path", short_help="Print where the policy file is.")
@_file_option
def path_(policy: str | None) -> None:
    """Print where the policy file is, or would be.

    \b
    Example:
      cat "$(mcpguard policy path)"
    """
    click.echo(str(config.load(os.environ, policy=policy).policy))


@command.command(short_help="Open the policy file in your editor.")
@_file_option
def edit(policy: str | None) -> None:
    """Open the policy file in VISUAL or EDITOR, and check it afterwards. A missing file begins with the starter rules.

    \b
    Example:
      EDITOR=nano mcpguard policy edit
    """
    path = config.load(os.environ, policy=policy).policy
    from mcpguard.policy_editing import begin

    begin(path)
    try:
        click.edit(filename=str(path))
    except click.ClickException as error:
        raise McpguardError(f"the editor: {error.format_message()}", "name one with VISUAL or EDITOR") from error
    except ValueError as error:  # its command is split into words as a shell does it
        raise McpguardError(
            f"the editor: not a command: {error}", "VISUAL or EDITOR: each quotation mark needs another"
        ) from error
    found, _ = load(path, named=True)
    click.echo(printable(f"{path}: OK, {_count(found)}"))
    for warning in warnings(found):
        click.echo(printable(f"warning: {warning}"), err=True)
