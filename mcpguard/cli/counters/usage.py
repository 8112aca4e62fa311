"""`mcpguard usage`: shows how full each counter is."""

import json
import os
import sys
from functools import partial
from typing import Any

import click

from mcpguard.cli.base import Command, give_way
from mcpguard.cli.counters import plain, table, usage_as_json
from mcpguard.cli.options import all_match, given, name_filters, with_settings
from mcpguard.cli.present import say, width_of_terminal
from mcpguard.config import Settings
from mcpguard.errors import PolicyError, UsageError
from mcpguard.policy.file import PolicyFile
from mcpguard.policy.model import Policy


@click.command("usage", Command)
@click.option(
    "--watch", is_flag=True, help="Show a live screen until Ctrl-C, with the calls per second and the latest denials."
)
@click.option("-n", "--lines", "rows", type=click.IntRange(min=0), metavar="N", help="The number of counters. Default: all.")
@name_filters("counters")
@with_settings("policy", "store")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per counter.")
def usage(settings: Settings, watch: bool, rows: int | None, as_json: bool, **names: str | None) -> None:
    """Show how full each counter is, the least quota left first.

    A line has the number of calls that a counter holds, its limit, how many calls are left, and when the limit allows the next
    call. Limits on cost count units, limits on errors count calls that failed, and caps count calls in flight. Rule and limit
    are those of the policy in force. A counter that no longer belongs to a rule comes last, without a limit.

    \b
    Examples:
      mcpguard usage
      mcpguard usage --user alice@acme.com -n 5
      mcpguard usage --watch
    """
    if watch and (as_json or not sys.stdout.isatty()):
        raise UsageError("--watch shows a screen on a terminal", "use mcpguard usage --json for programs")
    if watch and (kind := os.environ.get("TERM", "").lower()) in {"dumb", "unknown"}:  # for which `rich` draws nothing
        raise UsageError(f"--watch needs a terminal that can move its cursor, and TERM is {kind}", "leave out --watch")
    file = PolicyFile(settings.policy, named=settings.policy_named)
    found = file.begin()
    if isinstance(found, PolicyError):
        raise found
    is_selected = partial(all_match, given(names))
    if not settings.address.exists():
        say(f"no counters: there is no store at {settings.address.shown}")
        return
    if watch:
        from mcpguard.cli.counters import screen

        give_way()
        screen.show(settings, file, found, is_selected, rows)
    _print(settings, found, is_selected, rows, as_json=as_json)


def _print(settings: Settings, policy: Policy, is_selected: Any, rows: int | None, *, as_json: bool) -> None:
    from mcpguard.reading.usage import Limits

    with settings.read_store() as store:
        held = store.held()
        _, now_us = store.peek(())
        found = [one for one in Limits(policy, settings.namespace).usages(held, now_us) if is_selected(one.counter)][:rows]
    if not found and rows != 0 and not as_json:
        say("no counter holds calls" + (", or none matches" if held else ""))
    if as_json:
        lines = [json.dumps(usage_as_json(one)) for one in found]
    elif not sys.stdout.isatty():
        lines = [plain(one) for one in found]
    else:
        lines = table(found, width_of_terminal()) if found else []
    for line in lines:
        click.echo(line)
