"""`mcpguard policy`: show, check, explain and edit limits."""

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mcpguard import config
from mcpguard.cli import _policy_edit, _policy_show
from mcpguard.cli._command import Group
from mcpguard.cli._options import cost_of, json_option, policy_option, rule_of, rule_options, rule_table, store_option
from mcpguard.cli._seen import files, seen
from mcpguard.cli._text import tolerant_output
from mcpguard.config import Settings
from mcpguard.core.identity import parse_agent
from mcpguard.core.limiter import Counts
from mcpguard.core.policy.explain import cost_sentence, sentences
from mcpguard.core.policy.lint import cost_label, counted_in_grains, tier_warning, warnings
from mcpguard.core.policy.model import Policy, Rule
from mcpguard.core.policy.parse import STARTER, parse
from mcpguard.core.text import printable
from mcpguard.errors import ConfigError, ExitStatus, McpguardError, PolicyError, UsageError
from mcpguard.files import exposed, named_path
from mcpguard.policy_file import load

if TYPE_CHECKING:  # loads tomlkit
    from mcpguard.policy_editing import Edit


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


@command.command("set", short_help="Set a limit, a cap on calls in flight, or a cost.")
@rule_options
@click.option(
    "--count",
    type=click.Choice(["calls", "cost", "errors"]),
    help="What the LIMIT counts: calls, their cost in units, or calls that fail. Default: calls.",
)
@click.option("--concurrent", metavar="N", help="The most calls in flight at once, or unlimited.")
@click.option(
    "--wait", metavar="SPAN", help="How long a call that the rule refuses waits for room, such as 5s; 0s for not at all."
)
@click.option("--cost", metavar="N", help="Set what a call of --tool and --server costs, for limits with --count cost.")
@click.option("--name", metavar="TEXT", help="A label for the rule; '' removes the label.")
@click.option(
    "--observe/--enforce",
    default=None,
    help="Only report the calls that this rule would deny; or deny them. Default: as the rule does already, else deny.",
)
@click.argument("limits", nargs=-1, metavar="[LIMIT]...")
def set_(
    limits: tuple[str, ...], name: str | None, observe: bool | None, policy: str | None, count: str | None,
    concurrent: str | None, wait: str | None, cost: str | None, **selectors: Any,
) -> None:  # fmt: skip
    """Limit the calls that match all the given selectors. Without selectors, limit all calls.

    A LIMIT is calls per window, such as 5/1m or 100/90m (units: s m h d w), or deny, or unlimited. If the file has a
    rule with the same selectors and the same --per that counts the same, its limit is replaced, and it keeps what is not
    given. Otherwise a rule is added. Comments and the order of the file are kept.

    \b
    Examples:
      mcpguard policy set --user '*' --tool search_customers 20/1m 100/1h
      mcpguard policy set --user bob@acme.com --tool search_customers 10/1h
      mcpguard policy set --user '*' --agent '*::subagent::*' --per user 60/1m
      mcpguard policy set --tool delete_user deny
      mcpguard policy set --observe --tool generate_report 5/1m
      mcpguard policy set --tool generate_report --concurrent 2 --wait 10s
      mcpguard policy set --tool crm_sync --count errors 3/1m
      mcpguard policy set --user '*' --per user,arguments 5/10m
      mcpguard policy set --user '*' --count cost 100/1h
      mcpguard policy set --tool generate_report --cost 20
    """
    table = rule_table(selectors)
    given = {
        "limit": limits[0] if len(limits) == 1 else list(limits) or None,
        "count": count,
        "concurrent": _number(concurrent),
        "wait": wait,
        "name": name,
        "mode": None if observe is None else "observe" if observe else "enforce",
    }
    table |= {key: value for key, value in given.items() if value is not None}
    if cost is not None:
        _set_cost(table | {"cost": _number(cost)}, policy)
        return
    if not limits and concurrent is None:
        raise UsageError("nothing to set", "add a LIMIT such as 5/1m, or --concurrent N")
    rule_of(table)
    from mcpguard.policy_editing import put

    settings = config.load(os.environ, policy=policy)
    edit, at = put(settings.policy, table)
    _policy_edit.say_new_file(settings.policy, edit)
    click.echo(printable(f"{settings.policy}: {_policy_edit.what_changed(edit, at)}"))
    click.echo(printable(sentences(edit.after)[at]))
    before, after = edit.before, edit.after
    if not edit.is_unchanged:
        for consequence in counted_in_grains(after.rules[at], [before.rules[at]] if at < len(before.rules) else before.rules):
            click.echo(consequence)
    if after.observe:
        click.echo(_policy_edit.OBSERVING)
    _warn_of_new(edit, settings)


def _number(text: str | None) -> int | str | None:
    """An option's value: a number if it is one."""
    return int(text) if text is not None and len(text) <= 20 and text.isascii() and text.isdecimal() else text


def _set_cost(table: dict[str, Any], policy: str | None) -> None:
    _require_cost_only(table)
    cost_of(table)
    from mcpguard.policy_editing import put_cost

    settings = config.load(os.environ, policy=policy)
    edit, at = put_cost(settings.policy, table)
    _policy_edit.say_new_file(settings.policy, edit)
    was = edit.before.costs[at].units if at < len(edit.before.costs) else None
    cost = edit.after.costs[at]
    done = "unchanged" if edit.is_unchanged else "added" if was is None else f"changed (it was {was:,})"
    click.echo(printable(f"{settings.policy}: {cost_label(cost._replace(line=0))}: {done}"))
    click.echo(printable(cost_sentence(cost)))
    _warn_of_new(edit, settings)


def _require_cost_only(table: dict[str, Any]) -> None:
    """Refuse the options of rules beside `--cost`."""
    more = next((key for key in table if key not in {"tool", "server", "cost"}), None)
    if more is not None:
        option = {"limit": "a LIMIT", "mode": "--observe or --enforce"}.get(more, f"--{more}")
        raise UsageError(f"--cost and {option} exclude each other", "a cost depends on --tool and --server only")


def _warn_of_new(edit: "Edit", settings: Settings) -> None:
    """Show the warnings that the policy did not have before an edit."""
    known = set(warnings(edit.before, tiers=_tiers(settings)))
    for warning in warnings(edit.after, tiers=_tiers(settings)):
        if warning not in known:
            _warn(warning)


def _warn(text: str) -> None:
    click.echo(printable(f"warning: {text}"), err=True)


@command.command(short_help="Remove a rule, a part of a rule, or a cost.")
@rule_options
@click.option(
    "--count",
    type=click.Choice(["calls", "cost", "errors"]),
    help="Remove only the limit that counts this. A cap on calls in flight stays.",
)
@click.option("--concurrent", is_flag=True, help="Remove only the cap on calls in flight. A limit stays.")
@click.option("--cost", is_flag=True, help="Remove what a call of --tool and --server costs.")
def unset(policy: str | None, count: Counts | None, concurrent: bool, cost: bool, **selectors: Any) -> None:
    """Remove the rule with exactly these selectors and this --per.

    \b
    Examples:
      mcpguard policy unset --user bob@acme.com --tool search_customers
      mcpguard policy unset --tool generate_report --concurrent
      mcpguard policy unset --tool generate_report --cost
    """
    if [count is not None, concurrent, cost].count(True) > 1:
        raise UsageError("--count, --concurrent and --cost exclude each other", "give only one of them")
    table = rule_table(selectors)
    if cost:
        _unset_cost(table | {"cost": 1}, policy)
        return
    rule = rule_of(table | {"limit": "unlimited"})
    from mcpguard.policy_editing import take_out

    settings = config.load(os.environ, policy=policy)
    part: Counts | None = "concurrent" if concurrent else count
    found = take_out(settings.policy, rule, named=settings.policy_named, part=part)
    if found is None:
        policy_now, _ = load(settings.policy, named=True)
        what = "no rule" if part is None else "no rule with a cap" if concurrent else f"no limit that counts {part}"
        raise McpguardError(f"{settings.policy}: {what} for {rule.text}", _nearest(rule, policy_now.rules))
    gone, after, at = found
    whole = "the rule" if at is None else f"the {'cap' if concurrent else 'limit'} of rule {at + 1}"
    click.echo(printable(f"{settings.policy}: removed {whole} for {gone.text} (it was {gone.limits_text})"))
    if at is not None:
        click.echo(printable(sentences(after)[at]))
    for consequence in dict.fromkeys(one for rule in after.rules for one in counted_in_grains(rule, [gone])):
        click.echo(consequence)
    if not after.rules:
        click.echo(_policy_show.NO_RULES)


def _unset_cost(table: dict[str, Any], policy: str | None) -> None:
    _require_cost_only(table)
    cost = cost_of(table)
    from mcpguard.policy_editing import take_out_cost

    settings = config.load(os.environ, policy=policy)
    found = take_out_cost(settings.policy, cost, named=settings.policy_named)
    if found is None:
        raise McpguardError(f"{settings.policy}: no cost for {cost.pattern.text}", "see them with mcpguard policy show")
    gone, _ = found
    click.echo(printable(f"{settings.policy}: removed {cost_label(gone._replace(line=0))} (it was {gone.units:,})"))


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
    if policy.wait_us:
        wait = _policy_show.wait_text(policy.wait_us)
        click.echo(f"wait: {wait} (a refused call waits up to that long for room, unless its rule says otherwise)")


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
    "--arguments", metavar="JSON", help="The call's arguments, a JSON object, for rules that count equal arguments apart."
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
    tool: str, server: str | None, role: tuple[str, ...], scope: tuple[str, ...], arguments: str | None, token: str | None,
    config_file: str | None, as_json: bool, user: str | None, agent: str | None, **options: str | None,
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
    given_arguments = _policy_explain.arguments_of(arguments)
    settings = config.load(os.environ, config=config_file, server=server, **options)
    policy, is_starter = load(settings.policy, named=settings.policy_named)
    who = caller(settings, user=user, agent=agent, token=token, roles=role, scopes=scope, notify=_warn)
    places = {key: config.place(key, option, os.environ) for key, option in (("user", user), ("agent", agent))}
    called = server or os.environ.get("MCPGUARD_SERVER")
    found = explained(settings, policy, who, tool=tool, server=called, arguments=given_arguments, places=places, notify=_warn)
    if as_json:
        click.echo(json.dumps(_policy_explain.as_json(found, policy, settings.policy, is_starter=is_starter), indent=2))
        return
    _print_source(policy, settings.policy, is_starter=is_starter)
    _policy_explain.print_all(found)


@command.command(short_help="Check a policy file.")
@click.argument("file", required=False, metavar="[FILE]", shell_complete=files)
@policy_option
@json_option
def check(file: str | None, policy: str | None, as_json: bool) -> int:
    """Check FILE, or the policy in force, for errors and likely mistakes. FILE is the same as --policy FILE.

    The exit status is 0 if the policy is valid, with or without warnings, and 78 if it is not. Shows every error with its line.
    Warns of rules and limits that can never have an effect, of rules that match none of the newest calls in the audit log, of
    names that are probably wrong, and of other accounts that may change the policy, config.toml or the store.

    \b
    Examples:
      mcpguard policy check
      mcpguard policy check examples/policy.toml
    """
    if file is not None and policy is not None:
        raise UsageError("FILE and --policy both name the policy", "give only one of them")
    if file is not None:
        named_path(file, where="FILE")
    from mcpguard.policy_explaining import never_matched

    settings = config.load(os.environ, policy=file if policy is None else policy)
    try:
        found, is_starter = load(settings.policy, named=settings.policy_named)
    except PolicyError as error:
        if not as_json:
            raise
        click.echo(json.dumps(_policy_show.errors_as_json(error, settings.policy), indent=2))
        return error.exit_status
    unmatched = [] if is_starter else never_matched(found, settings)
    unlimited = tier_warning(found, _configured_tier(settings))
    found_warnings = [
        *warnings(found, tiers=_tiers(settings)),
        *([unlimited] if unlimited else []),
        *unmatched,
        *exposed(settings.files),
    ]
    if as_json:
        result = {
            "file": None if is_starter else str(settings.policy),
            "starter": is_starter,
            "rules": len(found.rules),
            "errors": [],
            "warnings": found_warnings,
        }
        click.echo(json.dumps(result, indent=2))
        return ExitStatus.OK
    source = f"starter policy (no file at {settings.policy})" if is_starter else str(settings.policy)
    click.echo(printable(f"{source}: OK, {_policy_show.counted(found)}"))
    for warning in found_warnings:
        click.echo(printable(f"warning: {warning}"))
    return ExitStatus.OK


def _configured_tier(settings: Settings) -> str | None:
    try:
        return parse_agent(settings.agent, where="agent").tier if settings.agent else None
    except ConfigError:
        return None  # `run` reports it


def _tiers(settings: Settings) -> list[str]:
    """The tiers that are used here although they are not usual ones."""
    tier = _configured_tier(settings)
    return [tier] if tier else []


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
def edit(policy: str | None) -> int:
    """Open a copy of the policy file in the editor that VISUAL or EDITOR names, check it, and save it if it is valid.

    If the text has errors, it asks whether to edit it again, to discard it, or to save it anyway. Without a terminal it is
    discarded. If the file does not exist, it is created with the starter rules.

    \b
    Example:
      EDITOR=nano mcpguard policy edit
    """
    settings = config.load(os.environ, policy=policy)
    return _policy_edit.edit(settings.policy, tiers=_tiers(settings))


@command.command(short_help="Only report denials, or deny.")
@policy_option
@click.argument("mode", type=click.Choice(["observe", "enforce"]))
def mode(policy: str | None, mode: str) -> None:
    """Set the mode of the whole policy. In observe mode, calls that would be denied are logged, and nothing is denied.

    Running servers obey from their next call on. A rule with a mode of its own keeps it.

    \b
    Examples:
      mcpguard policy mode observe
      mcpguard audit tail --decision would_deny --since 7d
      mcpguard policy mode enforce
    """
    from mcpguard.policy_editing import set_mode

    path = config.load(os.environ, policy=policy).policy
    edit = set_mode(path, mode)
    _policy_edit.say_new_file(path, edit)
    was = " (unchanged)" if edit.is_unchanged else f" (it was {'enforce' if mode == 'observe' else 'observe'})"
    click.echo(printable(f"{path}: mode: {mode}{was}"))
    if mode == "observe":
        click.echo("Nothing is denied. Calls that would be denied: mcpguard audit tail --decision would_deny")
        return
    for at, rule in enumerate(edit.after.rules):
        if rule.observe:
            click.echo(printable(f"rule {at + 1} ({rule.text}) has a mode of its own and still denies nothing"))


@command.command(short_help="Suggest limits from the audit log.")
@click.option("--since", metavar="D", default="7d", show_default=True, help="How far back to look: 12h, 7d, 4w …")
@click.option("--toml", "only", flag_value="toml", help="Print only the suggested policy.")
@click.option("--diff", "only", flag_value="diff", help="Print only the difference to the policy in force, for patch.")
@policy_option
@store_option
@json_option
def suggest(since: str, only: str | None, policy: str | None, store: str | None, as_json: bool) -> int:
    """Suggest limits from the calls in the audit log, as a policy and as its difference to the policy in force.

    A suggested limit is twice the calls in the busiest window, rounded up. It is never below what was seen. Each has its
    reason beside it. Limits that fit, and rules that deny, stay. Nothing is written.

    \b
    Examples:
      mcpguard policy suggest --since 7d
      mcpguard policy suggest --toml > suggested.toml
      mcpguard policy suggest --diff | patch "$(mcpguard policy path)"
    """
    from mcpguard.cli import _policy_suggest
    from mcpguard.policy_suggesting import days_ago_us
    from mcpguard.policy_suggesting import suggest as suggested

    since_us = days_ago_us(config.span_us(since, where="--since"))
    settings = config.load(os.environ, policy=policy, store=store)
    found = suggested(settings, since_us=since_us)
    if as_json:
        click.echo(json.dumps(_policy_suggest.as_json(found, settings.policy, since), indent=2))
        return ExitStatus.OK if found.findings.calls else ExitStatus.FAILURE
    if not found.findings.calls:
        hint = "let servers run with mcpguard for some days; to deny nothing during that time: mcpguard policy mode observe"
        raise McpguardError(f"too little history: no calls in the last {since}", hint)
    _policy_suggest.print_summary(found, settings.policy, since)
    diff = found.diff(settings.policy)
    if not diff:
        click.echo("nothing to suggest: no limit needs a change", err=True)
    if only != "diff" and (diff or only):
        _policy_suggest.print_toml(found.after)
    if not only and diff:
        click.echo()
    if only != "toml":
        _policy_suggest.print_diff(diff)
    return ExitStatus.OK
