"""`mcpguard demo`."""

import click

from mcpguard.errors import ExitStatus


@click.command()
@click.option("--keep", is_flag=True, help="Keep the demo's temporary folder, and say where it is.")
@click.pass_context
def demo(context: click.Context, *, keep: bool) -> None:
    """Watch an agent loop, and the limits hold.

    Starts a small CRM server behind mcpguard for three users, lets one of them call it 3,000 times, and shows what
    reached the server, what a denial looks like and what the audit log has. Takes some seconds; uses a temporary
    folder and nothing of your own policy, counters or audit log.

    Example: mcpguard demo
    """
    try:
        # Here, because mcp and rich take longer to import than any other command takes to run.
        from mcpguard.demo.story import run_demo

        status = run_demo(keep=keep)
    except KeyboardInterrupt:
        status = ExitStatus.INTERRUPTED
    context.exit(status)
