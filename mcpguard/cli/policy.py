"""`mcpguard policy`: show, check, explain and edit limits."""

import json
import os
import sys
from pathlib import Path

import click

from mcpguard import config
from mcpguard.cli import _policy_edit, _policy_set, _policy_show
from mcpguard.cli._command import Group
from mcpguard.cli._options import json_option, policy_option, store_option
from mcpguard.cli._seen import files, seen, unseen
from mcpguard.cli._text import warn
from mcpguard.configured_identity import configured_tier, used_tiers
from mcpguard.errors import ExitStatus, McpguardError, PolicyError, UsageError
from mcpguard.files import exposed, named_path
from mcpguard.policy.file import load
from mcpguard.policy.lint import still_capped, warnings
from mcpguard.policy.model import Policy
from mcpguard.policy.parse import STARTER, parse
from mcpguard.stores.clock import wall_us
from mcpguard.text.printing import printable
from mcpguard.text.times import span


@click.group("policy", Group)
def command() -> None:
    """Show, check, explain and edit the policy, which limits how often tools may be called, and by whom.

    Running servers obey an edit from their next call on. A file over 16 KiB (about 200 rules) is parsed in the background, so
    an edit of it applies shortly after that call.

    \b
    Examples:
      mcpguard policy show
      mcpguard policy set --user '*' --tool search_customers 20/1m 100/1h
    """


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
        wait = span(policy.wait_us)
        click.echo(f"wait: {wait} (a refused call waits at most this long, if its rule has no wait)")


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
    "--arguments", metavar="JSON", help="The call's arguments, a JSON object, for rules that count equal arguments separately."
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
    from mcpguard.reading.explaining import caller
    from mcpguard.reading.explaining import explain as explained

    if token is not None and user is not None:
        raise UsageError("--user and --token both name the user", "give only one of them")
    given = [("--user", user), ("--agent", agent), ("--tool", tool), ("--server", server)]
    _policy_explain.require_names([*given, *(("--role", one) for one in role), *(("--scope", one) for one in scope)])
    given_arguments = _policy_explain.arguments_of(arguments)
    settings = config.load(os.environ, config=config_file, server=server, **options)
    policy, is_starter = load(settings.policy, named=settings.policy_named)
    who = caller(settings, user=user, agent=agent, token=token, roles=role, scopes=scope, notify=warn)
    places = {key: config.place(key, option, os.environ) for key, option in (("user", user), ("agent", agent))}
    called = server or os.environ.get("MCPGUARD_SERVER")
    for note in unseen(settings, {"user": user, "agent": agent, "server": server, "tool": tool}):
        warn(note)
    found = explained(settings, policy, who, tool=tool, server=called, arguments=given_arguments, places=places, notify=warn)
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
    names that are probably wrong, and of other accounts that may change the policy, config.toml or the store. Names the rules
    that cap the calls of other rules more tightly, with the command that drops them.

    \b
    Examples:
      mcpguard policy check
      mcpguard policy check examples/policy.toml
    """
    if file is not None and policy is not None:
        raise UsageError("FILE and --policy both name the policy", "give only one of them")
    if file is not None:
        named_path(file, where="FILE")
    from mcpguard.clients.missing_hooks import missing_hooks
    from mcpguard.reading.explaining import never_matched

    named = file if policy is None else policy
    settings = config.load(os.environ, policy=named)
    try:
        found, is_starter = load(settings.policy, named=settings.policy_named)
    except PolicyError as error:
        if not as_json:
            raise
        click.echo(json.dumps(_policy_show.errors_as_json(error, settings.policy), indent=2))
        return error.exit_status
    missing = missing_hooks(found)
    unmatched = [] if is_starter else never_matched(found, settings, explained={one.at for one in missing})
    unlimited = found.tier_warning(configured_tier(settings))
    capped = still_capped(found, policy_option=["--policy", named] if named else [])
    found_warnings = [
        *warnings(found, tiers=used_tiers(settings)),
        *capped.warnings,
        *([unlimited] if unlimited else []),
        *map(str, missing),
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
            "notes": capped.notes,
        }
        click.echo(json.dumps(result, indent=2))
        return ExitStatus.OK
    source = f"starter policy (no file at {settings.policy})" if is_starter else str(settings.policy)
    click.echo(printable(f"{source}: OK, {_policy_show.counted(found)}"))
    for warning in found_warnings:
        click.echo(printable(f"warning: {warning}"))
    for note in capped.notes:
        click.echo(printable(f"note: {note}"))
    return ExitStatus.OK


@command.command(short_help="Write the starter policy to a file.")
@policy_option
def init(policy: str | None) -> None:
    """Write the starter rules to the policy file. They apply while there is no such file.

    \b
    Example:
      mcpguard policy init
    """
    path = config.load(os.environ, policy=policy).policy
    from mcpguard.policy.writing import begin

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

    If the text has errors, mcpguard asks whether to edit it again, to discard it, or to save it anyway. Without a terminal it
    discards the text. If there is no policy file, it first creates one with the starter rules.

    \b
    Example:
      EDITOR=nano mcpguard policy edit
    """
    settings = config.load(os.environ, policy=policy)
    return _policy_edit.edit(settings.policy, tiers=used_tiers(settings))


@command.command(short_help="Only report denials, or deny.")
@policy_option
@click.argument("mode", type=click.Choice(["observe", "enforce"]))
def mode(policy: str | None, mode: str) -> None:
    """Set the mode of the whole policy. In observe mode, calls that would be denied are logged, and nothing is denied.

    Running servers obey from their next call on. A rule in observe mode stays in it.

    \b
    Examples:
      mcpguard policy mode observe
      mcpguard audit tail --decision would_deny --since 7d
      mcpguard policy mode enforce
    """
    from mcpguard.policy.editing import set_mode

    settings = config.load(os.environ, policy=policy)
    path = settings.policy
    edit = set_mode(path, mode, named=settings.policy_named)
    _policy_edit.say_new_file(path, edit, named=settings.policy_named)
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
@click.option("--diff", "only", flag_value="diff", help="Print only the difference from the policy in force, for patch.")
@policy_option
@store_option
@json_option
def suggest(since: str, only: str | None, policy: str | None, store: str | None, as_json: bool) -> int:
    """Suggest limits from the calls in the audit log, as a policy and as its difference from the policy in force.

    A suggested limit is twice the calls in the busiest window, rounded up. It is never below what was seen. Each has its
    reason beside it. Warns of a limit that comes from a single burst, which may be a loop. Limits that fit, and rules that
    deny, stay. So do caps, limits on cost or errors, and limits that count equal arguments separately. Nothing is written.

    \b
    Examples:
      mcpguard policy suggest --since 7d
      mcpguard policy suggest --toml > suggested.toml
      mcpguard policy suggest --diff | patch "$(mcpguard policy path)"
    """
    from mcpguard.cli import _policy_suggest
    from mcpguard.reading.suggesting import suggest as suggested

    since_us = wall_us() - config.span_us(since, where="--since")
    settings = config.load(os.environ, policy=policy, store=store)
    found = suggested(settings, since_us=since_us)
    if as_json:
        click.echo(json.dumps(_policy_suggest.as_json(found, settings.policy, since), indent=2))
        return ExitStatus.OK if found.findings.calls else ExitStatus.FAILURE
    if not found.findings.calls:
        hint = "let servers run with mcpguard for a few days; to deny nothing during that time: mcpguard policy mode observe"
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


command.add_command(_policy_set.set_)
command.add_command(_policy_set.unset)
