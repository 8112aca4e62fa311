"""Checks the ways to notify the user: whether their programs are there, and with a message if that is asked for."""

import shutil
import time
from collections.abc import Iterator, Sequence

from mcpguard.alerts.deliver import desktop
from mcpguard.alerts.events import Event
from mcpguard.alerts.notifier import result, start
from mcpguard.alerts.way import Way
from mcpguard.doctor.check import Check, failed, good


def checks(ways: Sequence[Way], *, send: bool) -> Iterator[Check]:
    """Check each way.

    Args:
        ways: The ways.
        send: Whether to send a message, and wait until that is done.
    """
    test = Event({"decision": "store_lost", "reason": "this is a test of mcpguard doctor"}, time.time_ns() // 1000).message(0)
    if send and not ways:
        yield failed("notify", "config.toml has no [[notify]]", "write desktop = true below a line [[notify]]")
    for way in ways:
        program = "" if way.webhook else (way.command or desktop("", "")[0])[0]
        what = f"{way.shown}, on {', '.join(way.on)}"
        if program and not shutil.which(program):
            yield failed("notify", f"{what}: {program} is not installed", "install it, or write its full path")
        elif send and (why := result(start(way, test))):
            yield failed("notify", f"not sent: {why}", "correct [[notify]] in config.toml")
        else:
            yield good("notify", f"{what}: a message was sent" if send else what)
