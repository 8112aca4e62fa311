"""`mcpguard demo`."""

import contextlib
import os
import signal
from collections.abc import Iterator

import click

from mcpguard.cli.base import Command
from mcpguard.errors import ExitStatus


@click.command("demo", Command)
@click.option("--keep", is_flag=True, help="Keep the demo's temporary folder, and print where it is.")
def demo(keep: bool) -> int:
    """See the limits hold while an agent loops.

    Starts a small CRM server behind mcpguard for three users. The agent of one user calls it 3,000 times. The demo prints how
    many calls reached the server, what a denied client receives, and the newest denials in the audit log. It takes some
    seconds, works in a temporary folder, and does not touch your files.

    Example: mcpguard demo
    """
    with _ended_by_ctrl_c():
        # mcp and rich take longer to import than most commands take to run
        from mcpguard.demo.story import run_demo

    return run_demo(keep=keep)


@contextlib.contextmanager
def _ended_by_ctrl_c() -> Iterator[None]:
    """Let Ctrl-C end the process at once. An import may swallow a `KeyboardInterrupt` or turn it into another error."""
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:  # the parent process made us ignore it
        yield
        return
    signal.signal(signal.SIGINT, lambda *_: os._exit(ExitStatus.INTERRUPTED))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
