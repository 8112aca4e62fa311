"""`mcpguard doctor` and `whoami`: check this installation and a server behind it; tell which user and agent it would have.

The arguments of a client's entry can be pasted: both take the options of `run`.
"""

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

import click

from mcpguard import config
from mcpguard.cli import run
from mcpguard.cli.clients import entry_options, named_clients
from mcpguard.cli.commands import Command
from mcpguard.cli.options import files, json_option
from mcpguard.cli.present import echo, echo_json, paragraph, print_table, width_of_terminal
from mcpguard.config import Settings
from mcpguard.configured_identity import SOURCES, TOKEN_UNUSED, configured_identity
from mcpguard.doctor import Check
from mcpguard.doctor.checkup import checkup
from mcpguard.errors import ConfigError, ExitStatus, PolicyError, UsageError
from mcpguard.identity.caller import Identity
from mcpguard.identity.server_name import server_name
from mcpguard.policy.file import PolicyFile
from mcpguard.text.printing import plural, printable

if TYPE_CHECKING:
    from mcpguard.identity.jwt_settings import JwtSettings

_STYLES: Final = {"ok": "green", "note": "yellow", "FAIL": "red"}


@click.command("doctor", Command, context_settings=run.run.context_settings)
@entry_options
@click.option("--allow-unguarded", is_flag=True, help="Do not fail because a server is unguarded.")
@click.option("--notify", is_flag=True, help="Send a message by each [[notify]] of config.toml.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list of objects: check, ok, detail, hint.")
@click.argument("argv", nargs=-1, type=click.UNPROCESSED, metavar="[[--] COMMAND [ARG]...]", shell_complete=files)
def doctor(argv: Sequence[str], client: str | None, as_json: bool, allow_unguarded: bool, notify: bool, **options: Any) -> int:
    """Check this installation: PATH, config.toml, policy, store, user, agent, token and keys. Prints a line for each check.

    Also checks the files, hooks and plugins of your clients, and those of the project in the current folder: how many servers
    are guarded, and by which mcpguard. If one is unguarded, the check fails. Nothing that these files name is started.

    With --server or COMMAND, it also starts that server behind mcpguard as a client would, and lists its tools with the rules
    that apply. No tool is called. For a server of a project's file, give the COMMAND. It takes the options of `run`, so that
    you can paste the arguments of a client's entry.

    "ok" means that all is well, "note" that something could be better, "FAIL" that something is broken. If a check failed, the
    exit status is 1. Secrets are not shown.

    \b
    Examples:
      mcpguard doctor
      mcpguard doctor --allow-unguarded
      mcpguard doctor --notify
      mcpguard doctor --json | jq '.[] | select(.ok | not)'
      mcpguard doctor --server crm
      mcpguard doctor --client cursor --server crm
      mcpguard doctor --server crm -- npx -y @acme/crm-server
    """
    argv, options, folder = server_command(argv, options, client, command="doctor")
    found = _all(argv, options, folder, allow_unguarded=allow_unguarded, notify=notify)
    if as_json:
        results = list(found)
        echo_json([one._asdict() for one in results], indent=2)
    else:
        results = list(_shown(found))
        bad = sum(not one.ok for one in results)
        checks = plural(len(results), "check")
        click.echo(f"{bad} of {checks} failed" if bad else f"{checks}, none failed")
    return ExitStatus.OK if all(one.ok for one in results) else ExitStatus.FAILURE


doctor.params[1:1] = [param for param in run.run.params if isinstance(param, click.Option) and param.name != "server"]


def server_command(
    argv: Sequence[str], options: dict[str, Any], client: str | None, *, command: str
) -> tuple[Sequence[str], dict[str, Any], str]:
    """How a server is started: by the command that is given, or as a client's file says. Sets the variables of that file.

    Args:
        argv: The words after the options.
        options: The options of `run`, `server` among them.
        client: The client whose file it is; None for any client.
        command: The command of mcpguard, for hints.

    Returns:
        The server's own command, the options of `run`, and the folder in which it starts; empty for the working folder.

    Raises:
        UsageError: The options name no server, or not one.
    """
    folder = ""
    if client is not None:
        named_clients([client])
        if argv or not options["server"]:
            raise UsageError("--client: it says in which client's file --server is", "add --server NAME, and no command")
    if options["server"] and not argv:
        from mcpguard.doctor.clients import entry_of

        entry = entry_of(options["server"], os.environ, client, command=command)
        try:
            os.environ.update(entry.env)
        except (OSError, ValueError) as error:
            what = f"--server: the variables of {options['server']} cannot be set: {printable(str(error))}"
            raise UsageError(what, "correct its env in the client's file") from error
        argv, folder = entry.words, entry.cwd
        if entry.guard:  # the entry names its server itself
            options["server"] = None
    return *run.without_guard(argv, options), folder


def _all(argv: Sequence[str], options: dict[str, Any], folder: str, *, allow_unguarded: bool, notify: bool) -> Iterator[Check]:
    """The checks of this machine, and those of the server if there is a command."""
    read = {key: value for key, value in options.items() if key not in {"observe", "quiet"}}
    yield from checkup(os.environ, allow_unguarded=allow_unguarded, notify=notify, **read)
    if not argv:
        return
    with contextlib.suppress(ConfigError):  # the checks before have reported it
        settings = config.load(os.environ, **read)
        from mcpguard.doctor import server  # loads mcp

        yield from server.checks(settings, argv, options=run.words(options), server=options["server"], folder=folder)


def _shown(found: Iterable[Check]) -> Iterator[Check]:
    """Print each check as soon as it is known."""
    for one in found:
        word = "note" if one.is_advice else "ok" if one.ok else "FAIL"
        label = click.style(f"{word:4}", fg=_STYLES[word])
        paragraph(f"{one.check}: {one.detail}", indent=" " * 6, label=f"{label}  ")
        if one.hint:
            paragraph(one.hint, indent=" " * 12, label="      hint: ")
        yield one


WhoamiReport = dict[str, Any]


@click.command("whoami", Command, context_settings=run.run.context_settings)
@json_option
@click.argument("argv", nargs=-1, type=click.UNPROCESSED, metavar="[[--] COMMAND [ARG]...]", shell_complete=files)
def whoami(argv: tuple[str, ...], as_json: bool, **given: Any) -> int:
    """Show which user and agent a server started here would have, and where they come from.

    Takes the options of `run`, so that you can paste the arguments of a client's entry. Shows the claims of a token, but never
    the token. If nobody is authenticated, shows every problem and exits with status 1.

    \b
    Examples:
      mcpguard whoami
      mcpguard whoami --json | jq .problems
      mcpguard whoami --server crm -- npx -y @acme/crm-server
    """
    words, options = run.without_guard(argv, given)
    del options["observe"]
    settings = config.load(os.environ, **options)
    _ = settings.address  # raises if `run` would refuse the URL
    named = options["server"] or os.environ.get("MCPGUARD_SERVER") or (server_name(words) if words else "")
    identity = configured_identity(settings, named)
    report = _verified(settings, settings.jwt, identity) if settings.jwt else _caller(settings, identity)
    report |= {
        f"{key}_from": config.place(key, options[key], os.environ)
        for key in ("user", "agent")
        if report.get(f"{key}_source") == "config"
    }
    if as_json:
        echo_json(report)
    else:
        _show(report)
    return ExitStatus.FAILURE if report["problems"] else ExitStatus.OK


whoami.params[:0] = [param for param in run.run.params if isinstance(param, click.Option)]


def _caller(settings: Settings, identity: Identity) -> WhoamiReport:
    agent, source = identity.agent(None)
    known = {"user_source": identity.user_source, "agent": agent, "agent_source": source}
    known |= {key: getattr(identity, key) for key in ("server", "email", "roles", "scopes", "act")}
    warnings = [TOKEN_UNUSED] if identity.user_source != "jwt" and os.environ.get("MCPGUARD_TOKEN") else []
    policy = PolicyFile(settings.policy, named=settings.policy_named).begin()
    unlimited = None if isinstance(policy, PolicyError) else policy.tier_warning(identity.agent_parts.tier)
    warnings += [unlimited] if unlimited else []
    known = {"user": identity.user} | {key: value for key, value in known.items() if value}
    return known | {"problems": [], "warnings": warnings}


def _verified(settings: Settings, jwt: "JwtSettings", configured: Identity) -> WhoamiReport:
    """The report if a token names the user: also the token's claims, the provider's keys and every problem."""
    from mcpguard.identity.claims import time_of, utc
    from mcpguard.identity.token import TokenSource

    warnings: list[str] = []
    source = TokenSource(jwt, configured, os.environ, budget_ms=settings.timeout_ms, notify=warnings.append)
    found = source.examine_patiently()
    report = _caller(settings, found.identity or configured)
    if found.identity is None:
        del report["user"], report["user_source"]
    token: WhoamiReport = {"where": source.where, "verified": found.is_verified}
    if found.claims is not None:
        expires_s = time_of(found.claims, "exp")
        token |= {"expires": utc(expires_s)} if expires_s is not None else {}
        token["claims"] = dict(found.claims)
    keys: WhoamiReport = {"source": source.keys.source}
    if source.keys.fetched_s is not None:
        age_s = max(0, round(time.time() - source.keys.fetched_s))
        keys |= {"fetched": utc(source.keys.fetched_s), "age_seconds": age_s}
    if source.keys.problem:
        keys["problem"] = source.keys.problem
    problems = [{"message": problem.message, "hint": problem.hint} for problem in found.problems]
    return report | {"token": token, "keys": keys, "problems": problems, "warnings": [*warnings, *report["warnings"]]}


def _rows(report: WhoamiReport) -> Iterator[tuple[str, str]]:
    """The lines of the report, each a name and a text."""
    for key in ("user", "agent"):
        if key in report:
            source = report.get(f"{key}_from") or SOURCES.get(report[f"{key}_source"], "")
            yield key, f"{report[key]} ({source})" if source else report[key]
        else:
            yield key, "nobody: calls are denied with 401"
    for key in ("server", "email", "roles", "scopes", "act"):
        if key in report:
            yield key, report[key] if isinstance(report[key], str) else " ".join(report[key])
    if "token" in report:
        token, keys = report["token"], report["keys"]
        yield "token", token["where"]
        if "expires" in token:
            yield "expires", token["expires"]
        for name, value in token.get("claims", {}).items():
            text = value if isinstance(value, str) else json.dumps(value)
            yield f"claim {name}", text if token["verified"] else f"{text} (not verified)"
        age = f", {keys['age_seconds']} s old" if "age_seconds" in keys else ""
        yield "keys", keys["source"] + age
        if "problem" in keys:
            yield "keys problem", keys["problem"]
    for problem in report["problems"]:
        yield "problem", f"{problem['message']}. hint: {problem['hint']}"
    for warning in report["warnings"]:
        yield "warning", warning


def _show(report: WhoamiReport) -> None:
    """Print two columns within the terminal's width, or plain lines in a pipe."""
    rows = list(_rows(report))
    if not sys.stdout.isatty():
        for name, text in rows:
            echo(f"{name}: {text}")
        return
    styles = {"problem": "red", "warning": "yellow"}
    columns: list[dict[str, object]] = [{"max_width": (width_of_terminal() - 1) // 3}, {}]
    print_table([((name, styles.get(name, "")), text) for name, text in rows], columns)
