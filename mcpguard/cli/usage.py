"""`mcpguard usage` and `reset`: show how full each counter is, also on a live screen; empty counters."""

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import partial
from types import FrameType
from typing import Final, NoReturn

import click

from mcpguard.cli.commands import Command, give_way
from mcpguard.cli.options import all_match, given, lines_option, name_filters, require_terminal, with_settings, yes_option
from mcpguard.cli.present import confirm, fit, headings, room_beside, say, short_limit, table_row, width_of_terminal
from mcpguard.config import Settings
from mcpguard.errors import ExitStatus, PolicyError, UsageError
from mcpguard.limiter.plan import ARGUMENTS, SESSION, Label, Reported, label_parts
from mcpguard.policy.file import PolicyFile
from mcpguard.policy.model import SELECTORS, Policy
from mcpguard.reading.following import until_replaced
from mcpguard.reading.usage import DENIALS, NO_AXIS, LimitFinder, Usage, View, Watcher
from mcpguard.stores.api import CounterUse
from mcpguard.text.printing import amount, printable, quoted
from mcpguard.text.times import span, span_up, window

_BAR: Final = 8
_COLUMNS: Final = (("USAGE", _BAR), ("USED", -6), ("LIMIT", 9), ("LEFT", -6), ("FREE", 5))
_LONGEST: Final = 15
"""The most columns that a number or a limit takes."""

_LEAST_ROOM: Final = 10
"""With less room for the names there is no bar."""

_PRESSED: Final = 0.8
_SHOWN: Final = 8
"""How many digits of an arguments' hash people see."""

PERIOD_S: Final = 0.25
"""How often the screen is renewed at most."""

EFFORT: Final = 25
"""A renewal is followed by a pause of this many times its processor time, so that watching takes 4 % of a core."""

ROWS: Final = 40
"""The most counters on the screen."""

SIGNALS: Final = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
_AXES: Final = ("user", "tool", "agent", NO_AXIS)


def counter_text(label: str) -> str:
    """What the counter with this label counts, on one line without the window."""
    counter = label_parts(label)
    return _text(counter.values, counter.shared)


def _text(values: Mapping[str, str], shared: Mapping[str, Sequence[str]]) -> str:
    parts = []
    for key in SELECTORS:
        if key in values:
            parts.append(f"{key}={quoted(values[key])}")
        elif key in shared:
            parts.append(f"{key}={quoted(','.join(shared[key]))} (counted together)")
    if SESSION in values:
        parts.append(f"{SESSION}={quoted(values[SESSION]) if values[SESSION] else '?'}")  # that of no call yet
    if ARGUMENTS in values:
        parts.append(f"{ARGUMENTS}={values[ARGUMENTS][:_SHOWN] or '?'}")  # unknown before a call
    return " ".join(parts) or "every call"


def table(usages: Sequence[Usage], width: int) -> list[str]:
    """The lines of a table: the heading, and a line for each usage.

    Args:
        usages: The usages.
        width: The width of the terminal in columns.
    """
    cells = [
        [_bar(one), str(one.used), limit_text(one), "" if one.left is None else str(one.left), _free_text(one)]
        for one in usages
    ]
    longest = [max(map(len, column)) for column in zip(*cells, strict=True)] or [0] * len(_COLUMNS)
    columns = [
        (name, max(size, (min(_LONGEST, most) if size > 0 else -min(_LONGEST, most)), key=abs))
        for (name, size), most in zip(_COLUMNS, longest, strict=True)
    ]
    skipped = int(room_beside(columns, width) < _LEAST_ROOM)
    columns = [*columns[skipped:], ("COUNTER", room_beside(columns[skipped:], width))]
    lines = [headings(columns)]
    for one, (bar, *texts) in zip(usages, cells, strict=True):
        colour = "" if not one.rate else "red" if not one.left else "yellow" if one.share >= _PRESSED else "green"
        shown = [*texts, _text(one.counter, {})]
        lines.append(table_row(shown if skipped else [(bar, colour), *shown], columns))
    return lines


def _bar(one: Usage) -> str:
    blocks = " ▏▎▍▌▋▊▉█" if (sys.stdout.encoding or "").lower().startswith("utf") else " #"
    steps = len(blocks) - 1
    filled = round(one.share * _BAR * steps)
    if one.rate and one.used:
        filled = max(1, filled if not one.left else min(filled, _BAR * steps - 1))  # only a full counter has a full bar
    return (blocks[-1] * (filled // steps) + blocks[filled % steps]).strip()


def limit_text(one: Usage) -> str:
    """A counter's limit; for a counter without a rule its window."""
    text = Reported("", "", one.rate.n if one.rate else 0, _window(one), one.counts).limit_text
    return text if one.rate else "-" + text.removeprefix("0").removeprefix("-")


def _window(one: Usage) -> str:
    """The window as a policy writes it; empty for calls in flight."""
    return one.rate.text if one.rate else span(one.window_us) if one.window_us else ""


def _free_text(one: Usage) -> str:
    """When the limit allows the next call."""
    if one.next_free_ms is None:
        return "-"
    return span_up(one.next_free_ms, 1000) if one.next_free_ms else "now"


def plain(one: Usage) -> str:
    """A usage as one line of key=value."""
    words = [f"left={'-' if one.left is None else one.left}", f"used={one.used}", f"limit={limit_text(one)}"]
    words.append("next_free_ms=" + ("-" if one.next_free_ms is None else str(one.next_free_ms)))
    return " ".join([*words, _text(one.counter, {}), "rule=" + (quoted(one.rule.text) if one.rule else "-")])


def usage_as_json(one: Usage) -> dict[str, object]:
    """A usage as JSON. Without a rule, what depends on a rule is null."""
    return {
        "rule": one.rule.text if one.rule else None,
        "counter": dict(one.counter),
        "limit": one.rate.n if one.rate else None,
        "window": _window(one) or None,
        **({} if one.counts == "calls" else {"counts": one.counts}),
        "used": one.used,
        "left": one.left,
        "next_free_ms": one.next_free_ms,
    }


def watch(
    settings: Settings,
    file: PolicyFile,
    policy: Policy,
    is_selected: Callable[[Mapping[str, object]], bool],
    rows: int | None,
) -> NoReturn:
    """Show the live screen until a signal ends the program. The terminal is then as it was.

    Args:
        settings: The settings of this machine.
        file: The policy file.
        policy: The policy in force.
        is_selected: Whether a counter or a row with these members is shown.
        rows: The most counters; None for as many as fit.
    """
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    console = Console(highlight=False)  # without colours if NO_COLOR is set
    for one in SIGNALS:
        signal.signal(one, end_watching)
    with Live(console=console, screen=True, auto_refresh=False, redirect_stderr=False, redirect_stdout=False) as live:
        while True:  # again if the store is replaced
            while not settings.address.exists():
                time.sleep(PERIOD_S)
            with until_replaced(settings) as is_replaced, settings.read_store() as store:
                watcher = Watcher(store, file, policy, settings.namespace, is_selected)
                try:
                    while not is_replaced():
                        began_s = time.process_time()
                        width, height = console.size
                        lines = screen(watcher.look(), settings.address.shown, width, height, rows)
                        live.update(Text.from_ansi("\n".join(lines), no_wrap=True, overflow="crop"), refresh=True)
                        time.sleep(max(PERIOD_S, EFFORT * (time.process_time() - began_s)))
                finally:  # after an error, too: the file tells each new policy only once
                    policy = watcher.policy


def end_watching(number: int, _: FrameType | None) -> NoReturn:
    """End the program, so that what is on the stack restores the terminal. Further signals are ignored."""
    for one in SIGNALS:
        signal.signal(one, signal.SIG_IGN)
    raise SystemExit(128 + number)


def screen(view: View, where: str, width: int, height: int, rows: int | None) -> list[str]:
    """The lines of the screen, none longer than its width.

    Args:
        view: What is shown.
        where: The store.
        width: The width of the terminal in columns.
        height: Its height in lines.
        rows: The most counters.
    """
    now = time.strftime("%H:%M:%S")
    head = [
        f"mcpguard usage  {now}  {printable(where)}",
        *([printable(view.trouble)] if view.trouble else []),
        "",
        *_rates(view),
    ]
    denials = [_denial(one) for one in view.denials[: min(DENIALS, max(1, height // 5))]] or ["none"]
    tail = ["", "LATEST DENIALS", *denials]
    room = height - len(head) - 2  # for the empty line and the heading
    if view.usages and room <= len(tail):
        tail = []  # a low screen shows counters
    most = max(0, min(ROWS if rows is None else rows, room - len(tail)))
    counters = table(view.usages[:most], width) if view.usages else ["no counter holds calls"]
    lines = [
        *(fit(line, width - 1).rstrip() for line in head),
        "",
        *counters,
        *(fit(line, width - 1).rstrip() for line in tail),
    ]
    return lines[:height]


def _rates(view: View) -> list[str]:
    """A table of calls and denials per second by axis."""
    columns = [("", 16), *[(axis, -9) for axis in ("all", *_AXES)]]
    lines = [headings(columns)]
    for name, of in (("calls/s", view.calls_per_s), ("denials/s", view.denials_per_s)):
        values = [sum(of.values()), *(of.get(axis, 0.0) for axis in _AXES)]
        cells = [name, *(f"{value:.0f}" if value >= 100 else f"{value:.1f}" for value in values)]
        lines.append(table_row(cells, columns))
    return lines


def _denial(found: Mapping[str, object]) -> str:
    at = time.strftime("%H:%M:%S", time.localtime(datetime.fromisoformat(str(found["time"])).timestamp()))
    who = [printable(str(found[key])) for key in ("tool", "user", "agent", "server") if key in found]
    limit = short_limit(found) if "limit" in found else ""
    times = [f"×{found['repeats']}"] if "repeats" in found else []
    return " ".join(
        [at, fit(str(found["decision"]), 12), fit(str(found.get("axis", "")), 5), fit(limit, 9), *who[:1], *times, *who[1:]]
    )


@click.command("usage", Command)
@click.option(
    "--watch", "live", is_flag=True, help="Show a live screen until Ctrl-C, with the calls per second and the latest denials."
)
@lines_option("The number of counters. Default: all.")
@name_filters("counters")
@with_settings("policy", "store")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per counter.")
def usage(settings: Settings, live: bool, rows: int | None, as_json: bool, **names: str | None) -> None:
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
    if live and (as_json or not sys.stdout.isatty()):
        raise UsageError("--watch shows a screen on a terminal", "use mcpguard usage --json for programs")
    if live and (kind := os.environ.get("TERM", "").lower()) in {"dumb", "unknown"}:  # for which `rich` draws nothing
        raise UsageError(f"--watch needs a terminal that can move its cursor, and TERM is {kind}", "leave out --watch")
    file = PolicyFile(settings.policy, named=settings.policy_named)
    policy = file.begin()
    if isinstance(policy, PolicyError):
        raise policy
    is_selected = partial(all_match, given(names))
    if not settings.address.exists():
        say(f"no counters: there is no store at {settings.address.shown}")
        return
    if live:
        give_way()
        watch(settings, file, policy, is_selected, rows)
    with settings.read_store() as store:
        counters = store.counters()
        _, now_us = store.peek(())
        usages = LimitFinder(policy, settings.namespace).usages(counters, now_us)
        found = [one for one in usages if is_selected(one.counter)][:rows]
    if as_json:
        lines = [json.dumps(usage_as_json(one)) for one in found]
    else:
        lines = table(found, width_of_terminal()) if found and sys.stdout.isatty() else [plain(one) for one in found]
        if not found and rows != 0:
            say("no counter holds calls" + (", or none matches" if counters else ""))
    for line in lines:
        click.echo(line)


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
        click.echo(json.dumps(_use_as_json(use)) if as_json else _use_text(use))
    click.echo(f"{amount(len(found), 'counter')} reset", err=as_json)
    return None


def _members(label: Label) -> dict[str, str]:
    """What a counter counts, and the texts of the other selectors of its rule."""
    return label.values | {key: ",".join(texts) for key, texts in label.shared.items()}


def _use_as_json(use: CounterUse) -> dict[str, object]:
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


def _use_text(use: CounterUse) -> str:
    return printable(f"{counter_text(use.label)}: {used_text(use)}")


def _agreed(found: list[CounterUse]) -> bool:
    """List the counters, at most ten of them, and ask for confirmation."""
    more = [f"and {len(found) - _LISTED:,} more"] if len(found) > _LISTED else []
    click.echo("\n".join([*map(_use_text, found[:_LISTED]), *more]), err=True)
    return confirm(f"Reset {amount(len(found), 'counter')}?")


def used_text(use: CounterUse) -> str:
    """What a counter holds: `5 calls in the last hour`, `2 calls in flight`."""
    counter = label_parts(use.label)
    noun = {"cost": "unit", "errors": "error"}.get(counter.counts, "call")
    where = "in flight" if counter.counts == "concurrent" else f"in the last {window(counter.window_us)}"
    return f"{amount(use.used, noun)} {where}"
