"""`mcpguard policy set`, `unset` and `mode`: edits of the policy file."""

import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, TypeVar

import click

from mcpguard.cli.commands import Command
from mcpguard.cli.options import all_of, name_option, policy_words, unseen, with_settings, words
from mcpguard.cli.policy.show import NO_RULES
from mcpguard.cli.present import echo, warn
from mcpguard.clients.coverage import missing_hooks
from mcpguard.config import Settings
from mcpguard.configured_identity import used_tiers
from mcpguard.errors import McpguardError, PolicyError, UsageError
from mcpguard.limiter.plan import SESSION
from mcpguard.limiter.sliding import Counts
from mcpguard.policy.editing import PolicyEdit, put, put_cost, set_mode, take_out, take_out_cost
from mcpguard.policy.explain import cost_sentence, sentences, series
from mcpguard.policy.lint import Tightness, cost_text, unset_command, warnings
from mcpguard.policy.model import PER, Cost, Policy
from mcpguard.policy.parse import parse_cost, parse_rule
from mcpguard.text.printing import plural
from mcpguard.text.times import span

_T = TypeVar("_T")
_COMMAND_LINE: Final = "command line"
_SELECTORS: Final = {
    "user": "A user, or a pattern with *.",
    "agent": "An agent, client::tier::name; each part is a name or a pattern.",
    "tool": "A tool, or a pattern.",
    "server": "A server's name, or a pattern.",
    "role": "A role of the verified token. Repeat it to require several.",
    "scope": "A scope of the verified token. Repeat it to require several.",
}
_AFTER_SELECTORS: Final = ("per", "limit", "count", "concurrent", "wait", "warn", "name", "observe", "cost")
"""The options that say what is limited and how, in the order in which a new rule has them."""

_PER_HELP: Final = (
    "What has a count of its own: some of user,agent,tool,server,session,arguments; or none. "
    "Default: those that the rule selects by."
)
_rule_options = all_of(
    *(name_option(key, "G", text, with_patterns=True, multiple=key in {"role", "scope"}) for key, text in _SELECTORS.items()),
    click.option("--per", metavar="LIST", shell_complete=words(*PER, "none"), help=_PER_HELP),
    with_settings("policy"),
)


def _count_option(text: str) -> Callable[..., Any]:
    return click.option("--count", type=click.Choice(["calls", "cost", "errors"]), help=text)


@click.command("set", Command)
@_rule_options
@_count_option("What the LIMIT counts: calls, their cost in units, or calls that fail. Default: calls.")
@click.option("--concurrent", metavar="N", help="The most calls in flight at once, or unlimited.")
@click.option(
    "--wait", metavar="SPAN", help="How long a call that the rule refuses waits for room, such as 5s; 0s for not at all."
)
@click.option("--warn", metavar="SHARE", help="The share of each limit from which on a call warns, such as 80%.")
@click.option("--cost", metavar="N", help="Set what a call of --tool and --server costs, for limits with --count cost.")
@click.option("--name", metavar="TEXT", help="A label for the rule; '' removes the label.")
@click.option(
    "--observe/--enforce",
    default=None,
    help="Only report the calls that this rule would deny; or deny them. Default: as the rule does already, else deny.",
)
@click.argument("limit", nargs=-1, metavar="[LIMIT]...")
def set_(settings: Settings, **given: Any) -> None:
    """Limit the calls that match all the given selectors. Without selectors, limit all calls.

    A LIMIT is calls per window, such as 5/1m or 100/90m (units: s m h d w), or per session, such as 200/session, or deny, or
    unlimited. If the file has a rule with the same selectors, --per and --count, its limit is replaced. A limit per session has
    session in its --per. The rule keeps its other values unless you give new ones, but deny removes its cap, its wait and its
    warning, and unlimited its warning. Otherwise a rule is added. Comments and the order of the file are kept.
    Names the rules that still cap the same calls more tightly, or apply in its place, with the commands that drop them.

    \b
    Examples:
      mcpguard policy set --user '*' --tool search_customers 20/1m 100/1h
      mcpguard policy set --user bob@acme.com --tool search_customers 10/1h
      mcpguard policy set --user '*' --agent '*::subagent::*' --per user 60/1m
      mcpguard policy set --user '*' 200/session
      mcpguard policy set --tool delete_user deny
      mcpguard policy set --observe --tool generate_report 5/1m
      mcpguard policy set --tool generate_report --concurrent 2 --wait 10s
      mcpguard policy set --tool crm_sync --count errors 3/1m
      mcpguard policy set --user '*' --warn 80% 100/1h
      mcpguard policy set --user '*' --per user,arguments 5/10m
      mcpguard policy set --user '*' --count cost 100/1h
      mcpguard policy set --tool generate_report --cost 20
    """
    table = _table(given)
    if "cost" in table:
        _set_cost(table, settings)
        return
    if not table.keys() & {"limit", "concurrent"}:
        raise click.UsageError("missing argument LIMIT..., or --concurrent", click.get_current_context())
    _parsed(parse_rule, table)
    edit = put(settings.policy, table)
    at, after = edit.at, edit.after
    _say_new_file(settings, edit)
    echo(f"{settings.policy}: {_what_changed(edit)}")
    echo(sentences(after)[at])
    if after.observe:
        click.echo("The policy is in observe mode, so nothing is denied: mcpguard policy mode enforce")
    _say_what_caps(after, at, policy_words(settings))
    _warn(edit, settings, table, *_all_users_together(after, at, policy_words(settings)))


def _say_what_caps(policy: Policy, at: int, policy_option: Sequence[str]) -> None:
    """Name the rules that cap calls of a rule more tightly, or apply in its place, with the commands that drop them."""
    tightness = Tightness(policy)
    for others, many, one in (
        (tightness.capping(at), "still cap some of these calls more tightly", "still caps some of these calls more tightly"),
        (tightness.replacing(at), "apply in its place to calls of their agents", "applies in its place to calls of its agents"),
    ):
        if others:
            numbers = series([str(other + 1) for other in others])
            rules, them = (f"Rules {numbers} {many}", "them") if len(others) > 1 else (f"Rule {numbers} {one}", "it")
            click.echo(f"{rules}. To drop {them}:")
        for other in others:
            command = unset_command(policy, other, policy_option=policy_option)
            echo(f"  {policy.rules[other]._replace(concurrent=None).limits_text}: {command}")


def _all_users_together(policy: Policy, at: int, policy_option: Sequence[str]) -> Iterator[str]:
    """Warn of a rule for agents whose author has probably forgotten that it counts all users together."""
    rule = policy.rules[at]
    first = rule.parts[0]  # a session belongs to one user
    if rule.agent and first.bounds and "user" not in rule.selectors and not rule.per_text and SESSION not in first.per:
        each = rule._replace(selectors={"user": ("*",), **rule.selectors})
        command = shlex.join(["mcpguard", "policy", "set", *policy_option, *each.setting])
        drop = unset_command(policy, at, policy_option=policy_option)
        yield f"rule {at + 1} counts all users together; to count each user separately: {command}; then drop this rule: {drop}"


def _set_cost(table: dict[str, Any], settings: Settings) -> None:
    _parsed_cost(table)
    edit = put_cost(settings.policy, table)
    at = edit.at
    _say_new_file(settings, edit)
    was = edit.before.costs[at].units if at < len(edit.before.costs) else None
    cost = edit.after.costs[at]
    done = "unchanged" if edit.is_unchanged else "added" if was is None else f"changed (it was {was:,})"
    echo(f"{settings.policy}: {cost_text(cost)}: {done}")
    echo(cost_sentence(cost))
    _warn(edit, settings, table)


def _parsed_cost(table: dict[str, Any]) -> Cost:
    """The cost of a table. The options of rules are refused beside `--cost`."""
    more = next((key for key in table if key not in {"tool", "server", "cost"}), None)
    if more is not None:
        option = {"limit": "a LIMIT", "mode": "--observe or --enforce"}.get(more, f"--{more}")
        raise UsageError(
            f"--cost and {option} exclude each other", "use only --tool and --server: a cost depends on nothing else"
        )
    return _parsed(parse_cost, table)


def _warn(edit: PolicyEdit, settings: Settings, table: dict[str, Any], *more: str) -> None:
    """Show `more` warnings, those that the policy did not have before an edit, and those of names that no call has."""
    tiers = used_tiers(settings)
    before, after = ([*warnings(policy, tiers=tiers), *missing_hooks(policy).values()] for policy in (edit.before, edit.after))
    new = [warning for warning in after if warning not in before]
    for warning in [*more, *new, *unseen(settings, table, unlike=("tool", "server"))]:
        warn(warning)


@click.command("unset", Command)
@_rule_options
@_count_option("Remove only the limit that counts this. A cap on calls in flight stays.")
@click.option("--concurrent", is_flag=True, help="Remove only the cap on calls in flight. A limit stays.")
@click.option("--cost", is_flag=True, help="Remove what a call of --tool and --server costs.")
@click.option(
    "--observe/--enforce",
    default=None,
    help="Remove the rule only if it is in observe mode; or only if it is not. Default: in either case.",
)
def unset(
    settings: Settings, count: Counts | None, concurrent: bool, cost: bool, observe: bool | None, **selectors: Any
) -> None:
    """Remove the rule with exactly these selectors and this --per.

    \b
    Examples:
      mcpguard policy unset --user bob@acme.com --tool search_customers
      mcpguard policy unset --tool generate_report --concurrent
      mcpguard policy unset --tool generate_report --cost
    """
    if [count is not None, concurrent, cost].count(True) > 1:
        raise UsageError("--count, --concurrent and --cost exclude each other", "give only one of them")
    if cost:
        _unset_cost(_table(selectors | {"cost": "1", "observe": observe}), settings)
        return
    rule = _parsed(parse_rule, _table(selectors | {"limit": ("unlimited",)}))
    part: Counts | None = "concurrent" if concurrent else count
    found = take_out(settings.policy, rule, named=settings.policy_named, part=part, observe=observe)
    if found is None:
        what = "no rule" if part is None else "no rule with a cap" if concurrent else f"no limit that counts {part}"
        what += "" if observe is None else " in observe mode" if observe else " that is enforced"
        raise McpguardError(f"{settings.policy}: {what} for {rule.text}", "see the rules with mcpguard policy show")
    gone, after, at = found
    whole = "the rule" if at is None else f"the {'cap' if concurrent else 'limit'} of rule {at + 1}"
    echo(f"{settings.policy}: removed {whole} for {gone.text} (it was {gone.limits_text})")
    if at is not None:
        echo(sentences(after)[at])
    if not after.rules:
        click.echo(NO_RULES)


def _unset_cost(table: dict[str, Any], settings: Settings) -> None:
    cost = _parsed_cost(table)
    gone = take_out_cost(settings.policy, cost, named=settings.policy_named)
    if gone is None:
        raise McpguardError(f"{settings.policy}: no cost for {cost.pattern.text}", "see them with mcpguard policy show")
    echo(f"{settings.policy}: removed {cost_text(gone)} (it was {gone.units:,})")


@click.command("mode", Command)
@with_settings("policy")
@click.argument("mode", type=click.Choice(["observe", "enforce"]))
def mode(settings: Settings, mode: str) -> None:
    """Set the mode of the whole policy. In observe mode, calls that would be denied are logged, and nothing is denied.

    Running servers obey from their next call on. A rule in observe mode stays in it.

    \b
    Examples:
      mcpguard policy mode observe
      mcpguard audit tail --decision would_deny --since 7d
      mcpguard policy mode enforce
    """
    path = settings.policy
    edit = set_mode(path, mode, named=settings.policy_named)
    _say_new_file(settings, edit)
    was = " (unchanged)" if edit.is_unchanged else f" (it was {'enforce' if mode == 'observe' else 'observe'})"
    echo(f"{path}: mode: {mode}{was}")
    if mode == "observe":
        click.echo("Nothing is denied. Calls that would be denied: mcpguard audit tail --decision would_deny")
        return
    for at, rule in enumerate(edit.after.rules):
        if rule.observe:
            echo(f"rule {at + 1} ({rule.text}) has a mode of its own and still denies nothing")


def _say_new_file(settings: Settings, edit: PolicyEdit) -> None:
    """Say if an edit made the file. If an option or a variable names it, no policy was in force without it."""
    if edit.is_new_file:
        were = "" if settings.policy_named else ", which were in force without a file"
        echo(f"{settings.policy}: new file with the {plural(len(edit.before.rules), 'starter rule')}{were}")


def _what_changed(edit: PolicyEdit) -> str:
    """What an edit did to a rule, as a clause."""
    at = edit.at
    if edit.is_unchanged:
        return f"rule {at + 1} is unchanged"
    if at >= len(edit.before.rules):
        return f"added rule {at + 1}"
    old, new = edit.before.rules[at], edit.after.rules[at]
    parts = (
        (old.limits_text, new.limits_text, old.limits_text),
        (old.wait_us, new.wait_us, "without a wait" if old.wait_us is None else f"with a wait of {span(old.wait_us)}"),
        (old.warn, new.warn, "without a warning" if old.warn is None else f"with a warning at {old.warn}%"),
        (old.observe, new.observe, "in observe mode" if old.observe else "enforced"),
        (old.name, new.name, f"named {old.name!r}" if old.name else "without a name"),
    )
    was = [text for before, after, text in parts if before != after]
    return f"changed rule {at + 1}{f' (it was {series(was)})' if was else ''}"


def _table(given: Mapping[str, Any]) -> dict[str, Any]:
    """The TOML table of a rule or of a cost with the values of these options. Selectors come first."""
    in_order = sorted(given, key=lambda key: _AFTER_SELECTORS.index(key) if key in _AFTER_SELECTORS else -1)
    return {"mode" if key == "observe" else key: _value(key, given[key]) for key in in_order if given[key] not in (None, ())}


def _value(key: str, given: Any) -> Any:
    """The value of an option in a TOML table."""
    if isinstance(given, tuple):
        return given[0] if len(given) == 1 else list(given)
    if key == "observe":
        return "observe" if given else "enforce"
    if key == "per":
        return [] if given.strip() == "none" else [axis.strip() for axis in given.split(",")]
    is_number = key in {"concurrent", "cost"} and len(given) <= 20 and given.isascii() and given.isdecimal()
    return int(given) if is_number else given


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
