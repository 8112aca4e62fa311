"""Tells of each server whether mcpguard limits its calls, and what would make it do so.

Also finds the rules for subagents that match nothing because a client on this machine has no hook of mcpguard.
"""

import functools
import os
import shlex
from collections.abc import Iterable
from pathlib import Path

from mcpguard.clients.catalog import Client
from mcpguard.clients.discovery import (
    FileFault,
    HookFile,
    Machine,
    Source,
    entries_of,
    hook_files,
    is_used,
    of_plugin,
    plugin_sources,
    read,
    sources,
)
from mcpguard.clients.entries import Entry
from mcpguard.clients.guards import Guards, NamedGuard
from mcpguard.clients.hooks import deciding, guard_of, ours, why_skipped
from mcpguard.documents.document import Dialect
from mcpguard.errors import ConfigError
from mcpguard.identity.caller import CODEX, DEFAULT_AGENT, Agent
from mcpguard.identity.client_agents import HOOKS, SUBAGENT
from mcpguard.light_typing import Final, NamedTuple
from mcpguard.policy.explain import series
from mcpguard.policy.lint import label
from mcpguard.policy.model import Policy
from mcpguard.text.patterns import glob
from mcpguard.text.printing import plural

GUARDED, BY_HOOK, UNGUARDED, UNCHECKED = "guarded", "by hook", "unguarded", "not checked"
COUNTED: Final = (GUARDED, BY_HOOK, UNCHECKED, UNGUARDED)
"""What a server can be that its client uses, the best first. Another server is not counted, and its kind is told."""

_BY_HAND: Final = "add its command to the client's own file, switch it off here, then run mcpguard install {}"
_BRIDGE_BY_HAND: Final = "write npx -y mcp-remote and its URL as its command, then run mcpguard install {}"


class CoveredServer(NamedTuple):
    """A server of a client's file, and whether mcpguard limits its calls.

    Attributes:
        entry: Its entry.
        guard: The mcpguard that its entry starts; None if it starts none.
        state: What it is: one of `COUNTED`, or its kind.
        fix: What would guard it; empty unless it is unguarded.
    """

    entry: Entry
    guard: NamedGuard | None
    state: str
    fix: str


class Coverage:
    """The servers of an account's clients, and whether each is guarded.

    Args:
        machine: The account.
    """

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self.guards = Guards(machine.environ)
        self._read = functools.cache(read)  # one file can have the servers of many projects
        self._lacks = functools.cache(self._lacks_of)
        self._is_used = functools.cache(functools.partial(is_used, machine))
        self._states: dict[tuple[str, tuple[str, ...], str], list[tuple[bool, str]]] = {}  # clients share files

    def sources(self, project: Path | None = None) -> list[Source]:
        """The files of clients, and of plugins."""
        return [*sources(self._machine, project=project), *plugin_sources(self._machine, project=project)]

    def servers(self, source: Source) -> list[CoveredServer]:
        """The servers of a file. They are counted.

        Raises:
            FileFault: The file cannot be read, also not by the client.
        """
        entries = entries_of(source, self._read(source.file))
        entries = [of_plugin(self._machine, source, entry) for entry in entries] if source.plugin else entries
        found = [self._server(source, entry) for entry in entries]
        for one in found:
            key = os.path.realpath(source.file), source.layout.path, one.entry.name
            self._states.setdefault(key, []).append((self._is_used(source.client), one.state))
        return found

    def _server(self, source: Source, entry: Entry) -> CoveredServer:
        guard = self.guards.of_entry(source, entry.guard[0]) if entry.guard else None
        state = self._state(source, entry, guard)
        return CoveredServer(entry, guard, state, self._fix(source, entry) if state == UNGUARDED else "")

    def _state(self, source: Source, entry: Entry, guard: NamedGuard | None) -> str:
        if entry.kind not in ("stdio", "remote") and not entry.may_start:
            return entry.kind
        if guard is not None and guard.holds:
            return GUARDED
        if None in self._lacking(source):
            return BY_HOOK
        is_unseen = guard.state == "unseen" if guard is not None else entry.starts_mcpguard
        return UNCHECKED if is_unseen else UNGUARDED

    def _fix(self, source: Source, entry: Entry) -> str:
        client = source.client
        if entry.guard:
            return f"write {self.guards.own or 'the path of an installed mcpguard'} in the place of its mcpguard"
        if not entry.name:
            return "give it a name in the file"
        command = f"mcpguard install {client.key}{option(None if source.plugin else source.folder)}"
        if entry.kind != "remote" and (not source.plugin or (client.key == "codex" and entry.kind == "stdio")):
            return command
        if client.hook:  # one that is there and idle is not to be installed again
            return next((one for one in self._lacking(source) if one), f"{command} --enforce")
        if source.plugin:
            return _BY_HAND.format(client.key)
        return _BRIDGE_BY_HAND.format(client.key) if source.dialect is Dialect.YAML else f"{command} --bridge"

    def states(self) -> list[str]:
        """The states of the servers in all files that were read; of one that clients share, the worst in any that is used."""
        every = [
            [state for used, state in states if used] or [state for _, state in states] for states in self._states.values()
        ]
        return [max(states, key=lambda state: COUNTED.index(state) if state in COUNTED else -1) for states in every]

    def _lacking(self, source: Source) -> list[str | None]:
        """See `_lacks_of`, for the hook of the account and for that of the project of a file."""
        folder = Path(source.project) if source.project else None if source.plugin else source.folder
        projects = dict.fromkeys((None, folder))
        places = [place for project in projects for place in hook_files(self._machine, [source.client], project)]
        return [self._lacks(place, folder) for place in places]

    def _lacks_of(self, place: HookFile, folder: Path | None) -> str | None:
        """What makes a client ask mcpguard before each call of a server: see `why_skipped`.

        Returns:
            None if it asks; empty if it needs a new hook.
        """
        try:
            asks = deciding(place)
        except FileFault:
            return ""
        if not any(guard_of(one.command, self.guards, place.project).state == "known" for one in asks):
            return ""
        skipped = why_skipped(self._machine, place, folder)
        return f"{skipped[1]} (its hook is there, but {skipped[0]})" if skipped else None


def counted(states: Iterable[str], names: Iterable[str] = ()) -> str:
    """How many servers are guarded, and how many are not checked or not counted.

    Args:
        states: What each server is.
        names: Those that are not guarded, if they are told.
    """
    found = list(states)
    servers = [state for state in found if state in COUNTED]
    by_hook, unchecked = servers.count(BY_HOOK), servers.count(UNCHECKED)
    held = f"{servers.count(GUARDED) + by_hook} of {plural(len(servers), 'server')} guarded" if servers else ""
    parts = [f"{held}, {by_hook} of them by hook" if by_hook else held or "no server to guard"]
    parts += [f"{UNGUARDED}: {', '.join(names)}"] if names else []
    parts += [f"{UNCHECKED}: {unchecked}"] if unchecked else []
    kinds = sorted({state for state in found if state not in COUNTED})
    others = ", ".join(f"{found.count(kind)} {kind}" for kind in kinds)
    return "; ".join([*parts, *([f"not counted: {others}"] if others else [])])


def option(project: Path | None) -> str:
    """The option that names a project in a command."""
    return f" --project {shlex.quote(str(project))}" if project else ""


def missing_hooks(policy: Policy, found: Iterable[Client] | None = None) -> dict[int, str]:
    """A warning for each rule that matches no subagent of some client on this machine, by the rule's index.

    It ends with "; run " and the command that adds the hooks. The starter policy's own rules are left out.

    Args:
        policy: A policy.
        found: The clients to look at; None for all that have a file.
    """
    agents = {at: rule.agent for at, rule in enumerate(policy.rules) if rule.agent and not rule.is_starter}
    selecting = {at: agent for at, agent in agents.items() if _selects_subagents(agent)}
    clients, missing = _without_hook(found) if selecting else [], {}
    for at, agent in selecting.items():
        lacking = [client for client in clients if _needs_hook(agent, HOOKS[client.key].client)]
        if lacking:
            titles, keys = series([client.title for client in lacking]), " ".join([client.key for client in lacking])
            which = "its hook is" if len(lacking) == 1 else "their hooks are"
            told = f"{label(policy, at)} matches no subagent of {titles}, because {which} not installed"
            missing[at] = f"{told}; run mcpguard install {keys} --hook"
    return missing


def _selects_subagents(agent: Agent) -> bool:
    """Whether an agent pattern matches subagents, and not every agent of its client."""
    return glob(agent.tier, SUBAGENT) and not (glob(agent.tier, DEFAULT_AGENT.tier) and glob(agent.name, DEFAULT_AGENT.name))


def _needs_hook(agent: Agent, client: str) -> bool:
    """Whether an agent pattern matches the client's subagents only with its hook. Codex tells their tier without it."""
    return glob(agent.client, client) and not (client == CODEX and glob(agent.name, DEFAULT_AGENT.name))


def _without_hook(found: Iterable[Client] | None) -> list[Client]:
    """The clients that have no hook of mcpguard, neither for the account nor for the project in the working folder."""
    try:
        machine = Machine.this()
    except ConfigError:  # without a home folder there are no clients
        return []
    clients = dict.fromkeys([source.client for source in sources(machine)] if found is None else found)
    return [client for client in clients if client.hook and client.hook.leaves_notes and not _has_hook(machine, client)]


def _has_hook(machine: Machine, client: Client) -> bool:
    """Whether a hook is there. A file that cannot be read counts as one that has it: `doctor` reports it."""
    try:
        return any(ours(one) for project in (None, machine.project) for one in hook_files(machine, [client], project))
    except FileFault:
        return True
