"""`mcpguard demo`."""

import signal

import click

from mcpguard.cli.commands import Command


@click.command("demo", Command)
@click.option("--keep", is_flag=True, help="Keep the demo's temporary folder, and print where it is.")
def demo(keep: bool) -> int:
    """See the limits hold while an agent loops.

    Starts a small CRM server behind mcpguard for three users. The agent of one user calls it 3,000 times. The demo prints how
    many calls reached the server, what a denied client receives, and the newest denials in the audit log. It takes some
    seconds, works in a temporary folder, and does not touch your files.

    Example: mcpguard demo
    """
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # an import may swallow a `KeyboardInterrupt`
    # mcp and rich take longer to import than most commands take to run
    from mcpguard.demo.story import LOOP_CALLS, run_demo

    signal.signal(signal.SIGINT, before)
    return run_demo(keep=keep, loop_calls=LOOP_CALLS)
