"""`mcpguard whoami`: which user and agent a server started here would have."""

import json
import os
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from mcpguard import config
from mcpguard.cli import run
from mcpguard.cli.commands import Command
from mcpguard.cli.names import files
from mcpguard.cli.options import json_option
from mcpguard.cli.present import echo, echo_json, print_table, width_of_terminal
from mcpguard.config import Settings
from mcpguard.configured_identity import SOURCES, TOKEN_UNUSED, configured_identity
from mcpguard.errors import ExitStatus, PolicyError
from mcpguard.identity.caller import Identity
from mcpguard.identity.server_name import server_name
from mcpguard.policy.file import PolicyFile

if TYPE_CHECKING:
    from mcpguard.identity.jwt_settings import JwtSettings

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


# The arguments of a client's entry can be pasted: `whoami` takes the options of `run`
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
