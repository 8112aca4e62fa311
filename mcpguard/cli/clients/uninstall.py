"""`mcpguard uninstall`: make clients start their servers without mcpguard again."""

import os

import click

from mcpguard.cli.base import Command
from mcpguard.cli.clients import changing
from mcpguard.identity.account import state_folder


@click.command("uninstall", Command)
@changing.change_options
@click.option("--hook", is_flag=True, help="With --server: also remove the hooks of the clients that have the server.")
@changing.confirm_options
def uninstall(
    clients: tuple[str, ...], servers: tuple[str, ...], project: str | None, hook: bool, dry_run: bool, yes: bool
) -> int:
    """Undo `mcpguard install`: clients start their servers directly again, and nothing limits their calls.

    Without CLIENT, all clients that are found are changed; without --server, all their servers, and their hooks. Only what
    `install` has added is removed, even if the client or you changed the file since then. Policy, counters and audit log stay.

    \b
    Examples:
      mcpguard uninstall --dry-run
      mcpguard uninstall cursor --server crm
    """
    from mcpguard.clients.hooks import plan_hooks
    from mcpguard.clients.installing import plan_servers
    from mcpguard.clients.plan import Plan

    chosen = changing.chosen(clients, project)
    plan = Plan(state_folder(os.environ), chosen.machine)
    plan_servers(plan, chosen.sources, frozenset(servers), None)
    if hook or not servers:
        clients_with_hooks = changing.with_servers(chosen.clients, plan, servers)
        plan_hooks(plan, chosen.machine, clients_with_hooks, chosen.project, None)
    return changing.carry_out(plan, chosen, servers, changing.UNINSTALL, dry_run=dry_run, yes=yes)
