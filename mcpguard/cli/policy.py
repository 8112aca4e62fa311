"""`mcpguard policy`: show, check, explain and edit limits."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import click

from mcpguard import config
from mcpguard.cli import _policy_show
from mcpguard.cli._command import Group
from mcpguard.cli._options import json_option, policy_option, rule_of, rule_options, rule_table, store_option
from mcpguard.cli._seen import files, seen
from mcpguard.cli._text import tolerant_output
from mcpguard.config import Settings
from mcpguard.core.identity import parse_agent
from mcpguard.core.policy.explain import counted_in_grains, sentence, tier_warning, warnings
from mcpguard.core.policy.model import Policy, Rule
from mcpguard.core.policy.parse import STARTER, parse
from mcpguard.core.text import plural, printable
from mcpguard.errors import ConfigError, McpguardError, UsageError
from mcpguard.files import exposed
from mcpguard.policy_file import load


@click.group("policy", Group)
def command() -> None:
    """Show, check, explain and edit the policy, which limits how often tools may be called, and by whom.

    Running servers obey an edit from their next call on. A file over 16 KiB (about 200 rules) is parsed in the background, so
    an edit of it applies some moments after that call.

    \b
    Examples:
      mcpguard policy show
      mcpguard policy set --user '*' --tool search_customers 20/1m 100/1h
    """
    tolerant_output()


@command.command("set", short_help="Set a limit.")
@rule_options
@click.option("--name", metavar="TEXT", help="A label for the rule; '' removes the label.")
@click.argument("limits", nargs=-1, required=True, metavar="LIMIT...")
def set_(limits: tuple[str, ...], name: str | None, policy: str | None, **selectors: Any) -> None:
    """Limit the calls that match all the given selectors. Without selectors, limit all calls.

    A LIMIT is calls per window, such as 5/1m or 100/90m (units: s m h d w), or deny, or unlimited. If the file has a
    rule with the same selectors and the same --per, the limit of this rule is replaced. Otherwise a rule is added. Comments
    and the order of the file are kept.

    \b
    Examples:
      mcpguard policy set --user '*' --tool search_customers 20/1m 100/1h
      mcpguard policy set --user bob@acme.com --tool search_customers 10/1h
      mcpguard policy set --user '*' --agent '*::subagent::*' --per user 60/1m
      mcpguard policy set --tool delete_user deny
    """
    table = rule_table(selectors)
    table["limit"] = limits[0] if len(limits) == 1 else list(limits)
    if name is not None:
        table["name"] = name
    rule_of(table)
    from mcpguard.policy_editing import put

    settings = config.load(os.environ, policy=policy)
    before, after, at = put(settings.policy, table)
    replaced = at < len(before.rules)
    what = f"changed rule {at + 1} (it was {before.rules[at].limit_text})" if replaced else f"added rule {at + 1}"
    click.echo(printable(f"{settings.policy}: {what}"))
    click.echo(printable(sentence(after.rules[at])))
    for consequence in counted_in_grains(after.rules[at], [before.rules[at]] if replaced else before.rules):
        click.echo(consequence)
    known = set(warnings(before))
    for warning in warnings(after):
        if warning not in known:
            _warn(warning)


def _warn(text: str) -> None:
    click.echo(printable(f"warning: {text}"), err=True)


@command.command(short_help="Remove a rule.")
@rule_options
def unset(policy: str | None, **selectors: Any) -> None:
    """Remove the rule with exactly these selectors and this --per.

    \b
    Example:
      mcpguard policy unset --user bob@acme.com --tool search_customers
    """
    rule = rule_of(rule_table(selectors) | {"limit": "unlimited"})
    from mcpguard.policy_editing import take_out

    settings = config.load(os.environ, policy=policy)
    found = take_out(settings.policy, rule, named=settings.policy_named)
    if found is None:
        policy_now, _ = load(settings.policy, named=True)
        raise McpguardError(f"{settings.policy}: no rule for {rule.text}", _nearest(rule, policy_now.rules))
    gone, after = found
    click.echo(printable(f"{settings.policy}: removed the rule for {gone.text} (it was {gone.limit_text})"))
    for consequence in dict.fromkeys(one for rule in after.rules for one in counted_in_grains(rule, [gone])):
        click.echo(consequence)
    if not after.rules:
        click.echo(_policy_show.NO_RULES)


def _nearest(rule: Rule, rules: tuple[Rule, ...]) -> str:
    import difflib  # loaded only for an error

    texts = [other.text for other in rules]
    near = difflib.get_close_matches(rule.text, texts, 3, 0.3) or texts[:3]
    return f"similar rules: {'; '.join(near)}" if near else "the file has no rules"


@command.command(short_help="Show each rule, with a sentence that explains it.")
@policy_option
@json_option
def show(policy: str | None, as_json: bool) -> None:
    """Show where the policy comes from, and each rule with a sentence that explains it.

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
    _print_source(found, settings.policy, is_starter=is_starter)
    click.echo()
    if not found.rules:
        click.echo(_policy_show.NO_RULES)
    elif sys.stdout.isatty():
        _policy_show.print_table(found)
    else:
        _policy_show.print_plain(found)


def _print_source(policy: Policy, path: Path, *, is_starter: bool) -> None:
    click.echo(printable(f"starter policy: no file at {path}" if is_starter else f"policy: {path}"))
    if policy.observe:
        click.echo("mode: observe (nothing is denied; calls that would be denied are logged)")


@command.command(short_help="Show which rules apply to a call, and what is left.")
@click.option(
    "--user",
    metavar="U",
    shell_complete=seen("user"),
    help="The user who calls. Default: the token, MCPGUARD_USER, config.toml, the OS account.",
)
@click.option(
    "--agent",
    metavar="A",
    shell_complete=seen("agent"),
    help="client::tier::name. Default: MCPGUARD_AGENT, config.toml, an unknown client.",
)
@click.option("--tool", metavar="T", required=True, shell_complete=seen("tool"), help="The tool that is called.")
@click.option(
    "--server",
    metavar="S",
    shell_complete=seen("server"),
    help="The tool's server. Default: MCPGUARD_SERVER, the server of the tool's last call.",
)
@click.option("--role", metavar="R", multiple=True, shell_complete=seen("role"), help="A role of the caller. May be repeated.")
@click.option(
    "--scope", metavar="S", multiple=True, shell_complete=seen("scope"), help="A scope of the caller. May be repeated."
)
@click.option(
    "--token", metavar="[FILE]", is_flag=False, flag_value="", help="Take the caller from the token, or from the token in FILE."
)
@policy_option
@click.option(
    "--config",
    "config_file",
    metavar="F",
    shell_complete=files,
    help="The settings file. Default: MCPGUARD_CONFIG, the account's.",
)
@store_option
@json_option
def explain(
    tool: str, server: str | None, role: tuple[str, ...], scope: tuple[str, ...], token: str | None, config_file: str | None,
    as_json: bool, user: str | None, agent: str | None, **options: str | None,
) -> None:  # fmt: skip
    """Show which rules apply to one call, and what is left of their limits. Nothing is counted.

    Shows which rules apply, which are overridden and by which rule, which do not match and why, what the counters hold, and
    the decision on the next such call. If you leave an option out, its value is that of a server started here. If the
    token names the agent, --agent does not change it.

    \b
    Examples:
      mcpguard policy explain --user bob@acme.com --tool search_customers
      mcpguard policy explain --agent Cursor::background::nightly --tool search
      mcpguard policy explain --token --tool delete_user
    """
    from mcpguard.cli import _policy_explain
    from mcpguard.policy_explaining import caller
    from mcpguard.policy_explaining import explain as explained

    if token is not None and user is not None:
        raise UsageError("--user and --token both name the user", "give only one of them")
    given = [("--user", user), ("--agent", agent), ("--tool", tool), ("--server", server)]
    _policy_explain.require_names([*given, *(("--role", one) for one in role), *(("--scope", one) for one in scope)])
    settings = config.load(os.environ, config=config_file, server=server, **options)
    policy, is_starter = load(settings.policy, named=settings.policy_named)
    who = caller(settings, user=user, agent=agent, token=token, roles=role, scopes=scope, notify=_warn)
    places = {key: config.place(key, option, os.environ) for key, option in (("user", user), ("agent", agent))}
    called = server or os.environ.get("MCPGUARD_SERVER")
    found = explained(settings, policy, who, tool=tool, server=called, places=places, notify=_warn)
    if as_json:
        click.echo(json.dumps(_policy_explain.as_json(found, policy, settings.policy, is_starter=is_starter), indent=2))
        return
    _print_source(policy, settings.policy, is_starter=is_starter)
    _policy_explain.print_all(found)


@command.command(short_help="Check a policy file.")
@click.argument("file", required=False, metavar="[FILE]", shell_complete=files)
@policy_option
@json_option
def check(file: str | None, policy: str | None, as_json: bool) -> None:
    """Check FILE, or the policy in force, for errors and likely mistakes.

    The exit status is 0 if the policy is valid, with or without warnings, and 78 if it is not. A warning names other accounts
    that may change the file. Without FILE there are also warnings of accounts that may change config.toml or the store, of
    rules that match none of the newest calls in the audit log, and of a configured agent whose tier no rule matches.

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
    found_warnings = [*warnings(found), *([unlimited] if unlimited else []), *unmatched, *exposed(files)]
    if as_json:
        result = {
            "file": None if is_starter else str(path),
            "starter": is_starter,
            "rules": len(found.rules),
            "warnings": found_warnings,
        }
        click.echo(json.dumps(result, indent=2))
        return
    _print_checked(f"starter policy (no file at {path})" if is_starter else str(path), found)
    for warning in found_warnings:
        click.echo(printable(f"warning: {warning}"))


def _configured_tier(settings: Settings) -> str | None:
    try:
        return parse_agent(settings.agent, where="agent").tier if settings.agent else None
    except ConfigError:
        return None  # `run` reports it


def _print_checked(source: str, policy: Policy) -> None:
    rules = plural(len(policy.rules), "rule") if policy.rules else _policy_show.NO_RULES
    click.echo(printable(f"{source}: OK, {rules}"))


@command.command(short_help="Write the starter policy to a file.")
@policy_option
def init(policy: str | None) -> None:
    """Write the starter rules to the policy file. They apply while there is no such file.

    \b
    Example:
      mcpguard policy init
    """
    path = config.load(os.environ, policy=policy).policy
    from mcpguard.policy_editing import begin

    if not begin(path):
        raise McpguardError(f"{path} already exists", "change it with mcpguard policy set or mcpguard policy edit")
    click.echo(printable(f"{path}: wrote {len(parse(STARTER).rules)} starter rules"))


@command.command("path", short_help="Print the path of the policy file.")
@policy_option
def path_(policy: str | None) -> None:
    """Print the path of the policy file, even if there is no such file.

    \b
    Example:
      cat "$(mcpguard policy path)"
    """
    click.echo(str(config.load(os.environ, policy=policy).policy))


@command.command(short_help="Open the policy file in your editor.")
@policy_option
def edit(policy: str | None) -> None:
    """Open the policy file in the editor that VISUAL or EDITOR names, and check it afterwards.

    If the file does not exist, it is created with the starter rules.

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
        raise McpguardError(f"the editor: {error.format_message()}", "set VISUAL or EDITOR to the editor's command") from error
    except ValueError as error:  # click splits the command into words as a shell does
        raise McpguardError(f"VISUAL or EDITOR is not a command: {error}", "close each quotation mark") from error
    found, _ = load(path, named=True)
    _print_checked(str(path), found)
    for warning in warnings(found):
        _warn(warning)
