"""`mcpguard reset`: empty counters."""

import json
import os
import sys

import click

from mcpguard import config
from mcpguard.cli._command import Command
from mcpguard.cli._counters import Counted
from mcpguard.cli._store import opened, tolerant_output
from mcpguard.core.policy import AXES
from mcpguard.core.policy_explain import window
from mcpguard.core.text import printable
from mcpguard.errors import ExitStatus, UsageError
from mcpguard.stores.api import Held


@click.command("reset", Command, short_help="Empty counters.")
@click.option("--user", metavar="G", help="Counters of this user; a pattern with * for more.")
@click.option("--agent", metavar="G", help="Counters of this agent.")
@click.option("--server", metavar="G", help="Counters of this server.")
@click.option("--tool", metavar="G", help="Counters of this tool.")
@click.option("--store", metavar="URL", help="Where the counters are. Default: MCPGUARD_STORE, config.toml, the account's.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--json", "as_json", is_flag=True, help="Print what was reset as JSON, one counter a line.")
def command(store: str | None, yes: bool, as_json: bool, **selectors: str | None) -> int:
    """Empty the counters that all selectors match, or all of them; running wrappers obey from their next call on.

    A counter that several share, such as a tool's, is selected by what it counts for, not by who has used it. Limits and
    the audit stay.

    \b
    Examples:
      mcpguard reset --user alice@acme.com
      mcpguard reset --tool 'crm_*' --yes
    """
    tolerant_output()
    patterns = {key: pattern for key in AXES if (pattern := selectors[key]) is not None}
    if not yes and not (sys.stdin and sys.stdin.isatty()):
        raise UsageError("reset asks first, and there is no terminal to ask at", "add --yes")
    settings = config.load(os.environ, store=store)
    if not settings.address.exists():
        click.echo(printable(f"no counters: there is no store at {settings.address.shown}"), err=as_json)
        return ExitStatus.OK
    with opened(settings) as opened_store:
        counters = [(held, Counted.of(held.label)) for held in opened_store.held()]
        found = [
            (held, counter)
            for held, counter in counters
            if counter.namespace == settings.namespace and counter.is_selected(patterns)
        ]
        if not found:
            click.echo("no counter that holds anything matches", err=as_json)
            return ExitStatus.OK
        if not (yes or _agreed(found)):
            click.echo("nothing was reset", err=True)
            return ExitStatus.FAILURE
        opened_store.reset([held.label for held, _ in found])
    for held, counter in found:
        click.echo(json.dumps(_as_json(held, counter)) if as_json else _words(held, counter))
    click.echo(f"{_count(found)} reset", err=as_json)
    return ExitStatus.OK


def _as_json(held: Held, counter: Counted) -> dict[str, object]:
    """A counter with what it counts for, what it counts together, and what it held."""
    return {
        "namespace": counter.namespace,
        **counter.values,
        "together": counter.others,
        "window_seconds": counter.window_us // 1_000_000,
        "used": held.used,
    }


def _words(held: Held, counter: Counted) -> str:
    calls = f"{held.used:,} call{'' if held.used == 1 else 's'}"
    return printable(f"{counter.text}: {calls} in the last {window(counter.window_us)}")


def _count(found: list[tuple[Held, Counted]]) -> str:
    return f"{len(found):,} counter{'' if len(found) == 1 else 's'}"


def _agreed(found: list[tuple[Held, Counted]]) -> bool:
    """Name them, the first ones if they are many, and ask."""
    shown = 10
    for held, counter in found[:shown]:
        click.echo(_words(held, counter), err=True)
    if len(found) > shown:
        click.echo(f"and {len(found) - shown:,} more", err=True)
    return click.confirm(f"Reset {_count(found)}?", err=True)
