"""`mcpguard demo`: an agent loops, and the limits hold."""

import contextlib
import os
import signal
from collections.abc import Iterator

import click

from mcpguard.cli._command import Command
from mcpguard.cli._store import tolerant_output
from mcpguard.errors import ExitStatus


@click.command("demo", Command)
@click.option("--keep", is_flag=True, help="Keep the demo's temporary folder, and say where it is.")
def command(keep: bool) -> int:
    """See the limits hold while an agent loops.

    Starts a small CRM server behind mcpguard for three users, lets one of them
    call it 3,000 times, and shows what reached the server, what a denial looks
    like and what the audit log has. It takes some seconds, happens in a
    temporary folder, and touches nothing of yours.

    Example: mcpguard demo
    """
    tolerant_output()
    with _ended_by_ctrl_c():
        # Here: mcp and rich take longer to import than most commands take to run.
        from mcpguard.demo.story import run_demo

    return run_demo(keep=keep)


@contextlib.contextmanager
def _ended_by_ctrl_c() -> Iterator[None]:
    """Let Ctrl-C end the process at once: an import may drop a `KeyboardInterrupt`, or make another error of it."""
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:  # ignored, by whoever has started us
        yield
        return
    signal.signal(signal.SIGINT, lambda *_: os._exit(ExitStatus.INTERRUPTED))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
