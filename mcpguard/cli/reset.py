"""`mcpguard reset`: empty counters."""

import json
import os
import sys
from typing import NamedTuple

import click

from mcpguard import config
from mcpguard.cli._store import opened, selects, tolerant_output
from mcpguard.core.audit import printable
from mcpguard.core.policy import AXES, SELECTORS
from mcpguard.core.policy_explain import window
from mcpguard.errors import ExitStatus, UsageError
from mcpguard.stores.base import Held


class _Counter(NamedTuple):
    """A counter as its label has it.

    Attributes:
        namespace: Whose it is.
        values: What it counts for, by axis.
        others: The texts of its rule's other selectors, whose calls it counts together.
        window_us: Its window.
    """

    namespace: str
    values: dict[str, str]
    others: dict[str, list[str]]
    window_us: int

    def is_selected(self, patterns: dict[str, str]) -> bool:
        """Whether every pattern matches what it counts for, or the text of the selector that it counts together."""
        return all(
            any(
                selects(key, pattern, text)
                for text in [*([self.values[key]] if key in self.values else []), *self.others.get(key, [])]
            )
            for key, pattern in patterns.items()
        )

    def words(self, used: int) -> str:
        """What it is, on one line."""
        parts = []
        for key in SELECTORS:
            if key in self.values:
                parts.append(f"{key}={_word(self.values[key])}")
            elif key in self.others:
                parts.append(f"{key}={_word(','.join(self.others[key]))} together")
        calls = f"{used:,} call{'' if used == 1 else 's'}"
        return f"{' '.join(parts) or 'every call'}: {calls} in the last {window(self.window_us)}"


def _word(text: str) -> str:
    return json.dumps(text, ensure_ascii=False) if " " in text or not text else text


@click.command("reset", short_help="Empty counters.")
@click.option("--user", metavar="G", help="Counters of this user; a pattern with * for more.")
@click.option("--agent", metavar="G", help="Counters of this agent.")
@click.option("--server", metavar="G", help="Counters of this server.")
@click.option("--tool", metavar="G", help="Counters of this tool.")
@click.option("--store", metavar="URL", help="Where the counters are. Default: MCPGUARD_STORE, config.toml, the account's.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def command(store: str | None, yes: bool, **selectors: str | None) -> int:
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
        click.echo(printable(f"no counters: there is no store at {settings.address.shown}"))
        return ExitStatus.OK
    with opened(settings) as opened_store:
        found = [(held, counter) for held in opened_store.held() if (counter := _of(held)).namespace == settings.namespace]
        found = [(held, counter) for held, counter in found if counter.is_selected(patterns)]
        if not found:
            click.echo("no counter that holds anything matches")
            return ExitStatus.OK
        if not (yes or _agreed(found)):
            click.echo("nothing was reset", err=True)
            return ExitStatus.FAILURE
        opened_store.reset([held.label for held, _ in found])
    for held, counter in found:
        click.echo(printable(counter.words(held.used)))
    click.echo(f"{_count(found)} reset")
    return ExitStatus.OK


def _of(held: Held) -> _Counter:
    return _Counter(*json.loads(held.label))


def _count(found: list[tuple[Held, _Counter]]) -> str:
    return f"{len(found):,} counter{'' if len(found) == 1 else 's'}"


def _agreed(found: list[tuple[Held, _Counter]]) -> bool:
    """Name them, the first ones if they are many, and ask."""
    shown = 10
    for held, counter in found[:shown]:
        click.echo(printable(counter.words(held.used)), err=True)
    if len(found) > shown:
        click.echo(f"and {len(found) - shown:,} more", err=True)
    return click.confirm(f"Reset {_count(found)}?", err=True)
