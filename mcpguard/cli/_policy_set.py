"""`mcpguard policy set` and `mcpguard policy unset`."""

import os
import shlex
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click

from mcpguard import config
from mcpguard.cli import _policy_edit, _policy_show
from mcpguard.cli._command import Command
from mcpguard.cli._options import cost_of, rule_of, rule_options, rule_table
from mcpguard.cli._seen import unseen
from mcpguard.cli._text import warn
from mcpguard.config import Settings
from mcpguard.configured_identity import used_tiers
from mcpguard.errors import McpguardError, UsageError
from mcpguard.limiter.sliding import Counts
from mcpguard.policy.explain import cost_sentence, sentences, series
from mcpguard.policy.file import load
from mcpguard.policy.lint import cost_label, counted_in_grains, unset_command, warnings
from mcpguard.policy.model import Policy, Rule
from mcpguard.policy.tighter import Tightness
from mcpguard.text.printing import printable

if TYPE_CHECKING:  # loads tomli_w
    from mcpguard.policy.editing import Edit


@click.command("set", Command, short_help="Set a limit, a cap on calls in flight, or a cost.")
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
    rule with the same selectors, --per and --count, its limit is replaced. The rule keeps its other values unless you give
    new ones, but deny removes its cap and its wait. Otherwise a rule is added. Comments and the order of the file are kept.
    Names the rules that still cap the same calls more tightly, with the commands that drop them.

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
        raise click.UsageError("missing argument LIMIT..., or --concurrent", click.get_current_context())
    rule_of(table)
    from mcpguard.policy.editing import put

    settings = config.load(os.environ, policy=policy)
    edit, at = put(settings.policy, table)
    _policy_edit.say_new_file(settings.policy, edit, named=settings.policy_named)
    click.echo(printable(f"{settings.policy}: {_policy_edit.what_changed(edit, at)}"))
    click.echo(printable(sentences(edit.after)[at]))
    before, after = edit.before, edit.after
    if not edit.is_unchanged:
        for consequence in counted_in_grains(after.rules[at], [before.rules[at]] if at < len(before.rules) else before.rules):
            click.echo(consequence)
    if after.observe:
        click.echo(_policy_edit.OBSERVING)
    option = ["--policy", policy] if policy else []
    _say_what_caps(after, at, option)
    _warn(edit, settings, table, *_all_users_together(after, at, option))


def _say_what_caps(policy: Policy, at: int, policy_option: Sequence[str]) -> None:
    """Name the rules that still cap the calls of a rule more tightly, with the commands that drop them."""
    others = Tightness(policy).capping(at)
    if others:
        numbers = series([str(other + 1) for other in others])
        rules, them = (f"Rules {numbers} still cap", "them") if len(others) > 1 else (f"Rule {numbers} still caps", "it")
        click.echo(f"{rules} some of these calls more tightly. To drop {them}:")
    for other in others:
        command = unset_command(policy, other, policy_option=policy_option)
        click.echo(printable(f"  {policy.rules[other].parts[0].limits_text}: {command}"))


def _all_users_together(policy: Policy, at: int, policy_option: Sequence[str]) -> Iterator[str]:
    """Warn of a rule for agents whose author has probably forgotten that it counts all users together."""
    rule = policy.rules[at]
    if rule.agent and rule.parts[0].bounds and "user" not in rule.selectors and not rule.per_text:
        words = [*policy_option, *rule._replace(selectors={"user": ("*",), **rule.selectors}).options]
        words += ["--count", rule.counts] if rule.counts != "calls" and rule.has_limit else []
        words += ["--concurrent", str(rule.concurrent or "unlimited")] if rule.concurrent is not None else []
        yield (
            f"rule {at + 1} counts all users together; to count each user separately:"
            f" {shlex.join(['mcpguard', 'policy', 'set', *words, *rule.limit_text.split()])};"
            f" then drop this rule: {unset_command(policy, at, policy_option=policy_option)}"
        )


def _number(text: str | None) -> int | str | None:
    """An option's value: a number if it is one."""
    return int(text) if text is not None and len(text) <= 20 and text.isascii() and text.isdecimal() else text


def _set_cost(table: dict[str, Any], policy: str | None) -> None:
    _require_cost_only(table)
    cost_of(table)
    from mcpguard.policy.editing import put_cost

    settings = config.load(os.environ, policy=policy)
    edit, at = put_cost(settings.policy, table)
    _policy_edit.say_new_file(settings.policy, edit, named=settings.policy_named)
    was = edit.before.costs[at].units if at < len(edit.before.costs) else None
    cost = edit.after.costs[at]
    done = "unchanged" if edit.is_unchanged else "added" if was is None else f"changed (it was {was:,})"
    click.echo(printable(f"{settings.policy}: {cost_label(cost._replace(line=0))}: {done}"))
    click.echo(printable(cost_sentence(cost)))
    _warn(edit, settings, table)


def _require_cost_only(table: dict[str, Any]) -> None:
    """Refuse the options of rules beside `--cost`."""
    more = next((key for key in table if key not in {"tool", "server", "cost"}), None)
    if more is not None:
        option = {"limit": "a LIMIT", "mode": "--observe or --enforce"}.get(more, f"--{more}")
        raise UsageError(
            f"--cost and {option} exclude each other", "use only --tool and --server: a cost depends on nothing else"
        )


def _warn(edit: "Edit", settings: Settings, table: dict[str, Any], *more: str) -> None:
    """Show `more` warnings, those that the policy did not have before an edit, and those of names that no call has."""
    from mcpguard.clients.missing_hooks import missing_hooks

    tiers = used_tiers(settings)
    before, after = ([*warnings(policy, tiers=tiers), *map(str, missing_hooks(policy))] for policy in (edit.before, edit.after))
    new = [warning for warning in after if warning not in before]
    for warning in [*more, *new, *unseen(settings, table, unlike=("tool", "server"))]:
        warn(warning)


@click.command("unset", Command, short_help="Remove a rule, a part of a rule, or a cost.")
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
    from mcpguard.policy.editing import take_out

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
    from mcpguard.policy.editing import take_out_cost

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
    return f"look at similar rules: {'; '.join(near)}" if near else "add a rule first: the file has none"
