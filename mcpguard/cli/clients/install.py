"""`mcpguard install`: make clients start their servers through mcpguard."""

import os

import click

from mcpguard.cli.base import Command
from mcpguard.cli.clients import changing
from mcpguard.cli.present import warn
from mcpguard.identity.account import state_folder


@click.command("install", Command)
@changing.change_options
@click.option("--hook", is_flag=True, help="Also add the client's hook, which tells its subagents apart.")
@changing.confirm_options
def install(
    clients: tuple[str, ...], servers: tuple[str, ...], project: str | None, hook: bool, dry_run: bool, yes: bool
) -> int:
    """Make clients start their stdio servers through mcpguard, so that the policy limits their calls.

    Without CLIENT, all clients that are found are changed; without --server, all their stdio servers. Only the command and the
    arguments of an entry are changed. Remote and disabled servers are left. mcpguard shows a diff and asks.
    `mcpguard uninstall` restores every file.

    If MCPGUARD_CONFIG, MCPGUARD_POLICY, MCPGUARD_STORE, MCPGUARD_USER, MCPGUARD_AGENT, MCPGUARD_DENIALS, MCPGUARD_OBSERVE or
    MCPGUARD_QUIET is set, it is written into each entry as an option. A guarded server stays as it is, unless its mcpguard no
    longer exists; then it gets the path of this one. Before a file is changed, it is copied to the folder "backups" in
    mcpguard's state folder.

    \b
    Clients: claude-desktop, claude-code, codex, cursor, vscode, copilot,
    windsurf, zed, gemini, qwen, opencode, cline, continue, goose, kiro,
    lm-studio.

    \b
    Examples:
      mcpguard install --dry-run
      mcpguard install cursor --server crm
      mcpguard install claude-code --hook
      mcpguard install --project . --yes
    """
    from mcpguard.clients.hooks import plan_hooks
    from mcpguard.clients.installing import plan_servers
    from mcpguard.clients.launcher import launcher
    from mcpguard.clients.plan import Plan

    chosen = changing.chosen(clients, project)
    start = launcher(os.environ)
    changing.check_settings()
    plan = Plan(state_folder(os.environ), chosen.machine)
    plan_servers(plan, chosen.sources, frozenset(servers), start)
    if hook:
        clients_with_hooks = changing.with_servers(chosen.present, plan, servers)
        plan_hooks(plan, chosen.machine, clients_with_hooks, chosen.project, start)
        plan.faults += changing.without_hook(chosen)
    for warning in start.warnings if plan.changes else ():
        warn(warning)
    status = changing.carry_out(plan, chosen, servers, changing.INSTALL, dry_run=dry_run, yes=yes)
    if not hook:
        changing.warn_of_missing_hooks(chosen)
    return status
