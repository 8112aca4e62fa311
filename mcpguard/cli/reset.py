"""`mcpguard reset`: empty counters."""

import json
from typing import Final

import click

from mcpguard.cli.commands import Command
from mcpguard.cli.options import all_match, given, name_filters, require_terminal, with_settings, yes_option
from mcpguard.cli.present import confirm
from mcpguard.cli.usage import counter_text
from mcpguard.config import Settings
from mcpguard.errors import ExitStatus
from mcpguard.limiter.plan import Label, label_parts
from mcpguard.stores.api import CounterUse
from mcpguard.text.printing import amount, printable
from mcpguard.text.times import window

_LISTED: Final = 10
"""The most counters that a question lists."""


@click.command("reset", Command)
@name_filters("counters")
@with_settings("store")
@yes_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per counter.")
def reset(settings: Settings, yes: bool, as_json: bool, **names: str | None) -> int | None:
    """Empty the counters that match all the given selectors, or all counters. Limits and the audit log stay as they are.

    --user alice matches the counters that count only alice's calls. It does not match a counter that users share, such as
    that of a limit on a tool for all users. Running servers count from zero from their next call on. After a reset, calls in
    flight continue, but no longer hold a place.

    \b
    Examples:
      mcpguard reset --user alice@acme.com
      mcpguard reset --tool 'crm_*' --yes
    """
    if not yes:
        require_terminal("reset", "add --yes to reset without asking")
    if not settings.address.exists():
        click.echo(printable(f"no counters: there is no store at {settings.address.shown}"), err=as_json)
        return None
    with settings.change_store() as store:
        labels = [(one, label_parts(one.label)) for one in store.counters()]
        labels = [one for one in labels if one[1].namespace == settings.namespace and all_match(given(names), _members(one[1]))]
        found = [use for use, label in labels if not label.is_mark]
        if not found:
            click.echo("no counter in use matches", err=as_json)
            return None
        if not (yes or _agreed(found)):
            click.echo("nothing was reset", err=True)
            return ExitStatus.FAILURE
        store.reset([use.label for use, _ in labels])
    for use in found:
        click.echo(json.dumps(_as_json(use)) if as_json else _text(use))
    click.echo(f"{amount(len(found), 'counter')} reset", err=as_json)
    return None


def _members(label: Label) -> dict[str, str]:
    """What a counter counts, and the texts of the other selectors of its rule."""
    return label.values | {key: ",".join(texts) for key, texts in label.shared.items()}


def _as_json(use: CounterUse) -> dict[str, object]:
    """A counter, and what it held."""
    counter = label_parts(use.label)
    return {
        "namespace": counter.namespace,
        **counter.values,
        "together": counter.shared,
        **({} if counter.counts == "calls" else {"counts": counter.counts}),
        "window_seconds": counter.window_us // 1_000_000,
        "used": use.used,
    }


def _text(use: CounterUse) -> str:
    return printable(f"{counter_text(use.label)}: {used_text(use)}")


def _agreed(found: list[CounterUse]) -> bool:
    """List the counters, at most ten of them, and ask for confirmation."""
    more = [f"and {len(found) - _LISTED:,} more"] if len(found) > _LISTED else []
    click.echo("\n".join([*map(_text, found[:_LISTED]), *more]), err=True)
    return confirm(f"Reset {amount(len(found), 'counter')}?")


def used_text(use: CounterUse) -> str:
    """What a counter holds: `5 calls in the last hour`, `2 calls in flight`."""
    counter = label_parts(use.label)
    noun = {"cost": "unit", "errors": "error"}.get(counter.counts, "call")
    where = "in flight" if counter.counts == "concurrent" else f"in the last {window(counter.window_us)}"
    return f"{amount(use.used, noun)} {where}"
