"""`mcpguard demo`: an agent loops, and the limits hold."""

import click


@click.command()
@click.option("--keep", is_flag=True, help="Keep the demo's temporary folder, and say where it is.")
def command(keep: bool) -> int:
    """See the limits hold while an agent loops.

    Starts a small CRM server behind mcpguard for three users, lets one of them
    call it 3,000 times, and shows what reached the server, what a denial looks
    like and what the audit log has. It takes some seconds, happens in a
    temporary folder, and touches nothing of yours.

    Example: mcpguard demo
    """
    # Here: mcp and rich take longer to import than most commands take to run.
    from mcpguard.demo.story import run_demo

    return run_demo(keep=keep)
