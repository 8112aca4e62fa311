"""The live screen of `usage --watch`."""

import signal
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from types import FrameType
from typing import Final, NoReturn

from rich.console import Console
from rich.live import Live
from rich.text import Text

from mcpguard.cli.present import fit, headings, table_row
from mcpguard.cli.usage import short_limit, table
from mcpguard.config import Settings
from mcpguard.policy.file import PolicyFile
from mcpguard.policy.model import Policy
from mcpguard.reading.following import until_replaced
from mcpguard.reading.usage import DENIALS, NO_AXIS, View, Watcher
from mcpguard.text.printing import printable

PERIOD_S: Final = 0.25
"""How often the screen is renewed at most."""

EFFORT: Final = 25
"""A renewal is followed by a pause of this many times its processor time, so that watching takes 4 % of a core."""

ROWS: Final = 40
"""The most counters on the screen."""

SIGNALS: Final = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
_AXES: Final = ("user", "tool", "agent", NO_AXIS)


def show(
    settings: Settings,
    file: PolicyFile,
    policy: Policy,
    is_selected: Callable[[Mapping[str, object]], bool],
    rows: int | None,
) -> NoReturn:
    """Show the screen until a signal ends the program. The terminal is then as it was.

    Args:
        settings: The settings of this machine.
        file: The policy file.
        policy: The policy in force.
        is_selected: Whether a counter or a row with these members is shown.
        rows: The most counters; None for as many as fit.
    """
    console = Console(highlight=False)  # without colours if NO_COLOR is set
    for one in SIGNALS:
        signal.signal(one, end)
    with Live(console=console, screen=True, auto_refresh=False, redirect_stderr=False, redirect_stdout=False) as live:
        while True:  # again if the store is replaced
            while not settings.address.exists():
                time.sleep(PERIOD_S)
            with until_replaced(settings) as is_replaced, settings.read_store() as store:
                watcher = Watcher(store, file, policy, settings.namespace, is_selected)
                try:
                    while not is_replaced():
                        began_s = time.process_time()
                        lines = screen(watcher.look(), settings.address.shown, *console.size, rows)
                        live.update(Text.from_ansi("\n".join(lines), no_wrap=True, overflow="crop"), refresh=True)
                        time.sleep(max(PERIOD_S, EFFORT * (time.process_time() - began_s)))
                finally:  # after an error, too: the file tells each new policy only once
                    policy = watcher.policy


def end(number: int, _: FrameType | None) -> NoReturn:
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
