"""Finds rules for subagents that match nothing because a client on this machine has no hook of mcpguard."""

from collections.abc import Iterable

from mcpguard.clients.catalog import Client, Hook
from mcpguard.clients.discovery import Fault, Machine, hook_file, sources
from mcpguard.clients.hooks import commands_in
from mcpguard.errors import ConfigError
from mcpguard.identity.agent import DEFAULT, Agent
from mcpguard.identity.caller import CODEX
from mcpguard.identity.client_agents import HOOKS, SUBAGENT
from mcpguard.policy.explain import series
from mcpguard.policy.lint import label
from mcpguard.policy.model import Policy
from mcpguard.policy.parse import untouched
from mcpguard.text.patterns import glob


def missing_hooks(policy: Policy, found: Iterable[Client] | None = None) -> dict[int, str]:
    """A warning for each rule that matches no subagent of some client on this machine, by the rule's index.

    It ends with "; run " and the command that adds the hooks. The starter policy's own rules are left out.

    Args:
        policy: A policy.
        found: The clients to look at; None for all that have a file.
    """
    agents = {at: rule.agent for at, rule in enumerate(policy.rules) if rule.agent and _selects_subagents(rule.agent)}
    selecting = agents.keys() - untouched(policy)
    clients, missing = _without_hook(found) if selecting else [], {}
    for at in sorted(selecting):
        lacking = [client for client in clients if _needs_hook(agents[at], HOOKS[client.key].client)]
        if lacking:
            titles, keys = series([client.title for client in lacking]), " ".join([client.key for client in lacking])
            which = "its hook is" if len(lacking) == 1 else "their hooks are"
            told = f"{label(policy, at)} matches no subagent of {titles}, because {which} not installed"
            missing[at] = f"{told}; run mcpguard install {keys} --hook"
    return missing


def _selects_subagents(agent: Agent) -> bool:
    """Whether an agent pattern matches subagents, and not every agent of its client."""
    return glob(agent.tier, SUBAGENT) and not (glob(agent.tier, DEFAULT.tier) and glob(agent.name, DEFAULT.name))


def _needs_hook(agent: Agent, client: str) -> bool:
    """Whether an agent pattern matches the client's subagents only with its hook. Codex tells their tier without it."""
    return glob(agent.client, client) and not (client == CODEX and glob(agent.name, DEFAULT.name))


def _without_hook(found: Iterable[Client] | None) -> list[Client]:
    """The clients that have no hook of mcpguard, neither for the account nor for the project in the working folder."""
    try:
        machine = Machine.this()
    except ConfigError:  # without a home folder there are no clients
        return []
    clients = dict.fromkeys([source.client for source in sources(machine)] if found is None else found)
    return [client for client in clients if client.hook and client.hook.leaves_notes and not _has_hook(machine, client.hook)]


def _has_hook(machine: Machine, hook: Hook) -> bool:
    """Whether a hook is there. A file that cannot be read counts as one that has it: `doctor` reports it."""
    try:
        return any(commands_in(hook_file(machine, hook, project), hook) for project in (None, machine.project))
    except Fault:
        return True
