"""Tells of each server whether mcpguard limits its calls, and what would make it do so."""

import functools
import hashlib
import itertools
import json
import os
import re
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from mcpguard.clients.catalog import Client
from mcpguard.clients.discovery import Fault, Machine, Source, content_of, entries_of, hook_file, is_off, is_used, sources
from mcpguard.clients.entries import Entry
from mcpguard.clients.guards import Guard, Guards
from mcpguard.clients.hooks import Ours, deciding, guard_of
from mcpguard.clients.installing import starts_mcpguard
from mcpguard.clients.launcher import words_of
from mcpguard.clients.plugins import of_plugin, plugin_sources
from mcpguard.documents.document import Dialect
from mcpguard.text.printing import plural

GUARDED, BY_HOOK, UNGUARDED, UNCHECKED = "guarded", "by hook", "unguarded", "not checked"
COUNTED: Final = (GUARDED, BY_HOOK, UNCHECKED, UNGUARDED)
"""What a server can be that its client uses, the best first. Another server is not counted, and its kind is told."""

_INSTALL: Final = "install"
_BY_HAND: Final = "add its command to the client's own file, switch it off here, then run mcpguard install {}"


class Coverage:
    """The servers of an account's clients, and whether each is guarded.

    Args:
        machine: The account.
    """

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self.guards = Guards(machine.environ)
        self._lacks = functools.cache(self._lacks_of)
        self._is_used = functools.cache(functools.partial(is_used, machine))
        self._states: dict[tuple[str, tuple[str, ...], str], list[tuple[bool, str]]] = {}  # clients share files

    def sources(self, project: Path | None = None) -> list[Source]:
        """The files of clients, and of plugins."""
        return [*sources(self._machine, project=project), *plugin_sources(self._machine, project)]

    def entries(self, source: Source, data: bytes) -> list[Entry]:
        """The servers of a file. They are counted.

        Raises:
            Fault: The client cannot read the file either.
        """
        found = entries_of(source, data)
        found = [of_plugin(self._machine, source, entry) for entry in found] if source.plugin else found
        for entry in found:
            key = os.path.realpath(source.file), source.layout.path, entry.name
            self._states.setdefault(key, []).append((self._is_used(source.client), self.state(source, entry)))
        return found

    def guard(self, source: Source, entry: Entry) -> Guard | None:
        """The mcpguard that an entry starts; None if it starts none."""
        return self.guards.of_entry(source, entry.guard[0]) if entry.guard else None

    def state(self, source: Source, entry: Entry) -> str:
        """What a server is: one of `COUNTED`, or its kind."""
        if entry.kind not in ("stdio", "remote") and not entry.may_start:
            return entry.kind
        guard = self.guard(source, entry)
        if guard is not None and guard.holds:
            return GUARDED
        if not all(self._lacking(source)):
            return BY_HOOK
        is_unseen = guard.state == "unseen" if guard is not None else starts_mcpguard(entry)
        return UNCHECKED if is_unseen else UNGUARDED

    def fix(self, source: Source, entry: Entry) -> str:
        """What would guard a server that is unguarded."""
        client = source.client
        if entry.guard:
            return f"write {self.guards.own or 'the path of an installed mcpguard'} in the place of its mcpguard"
        command = f"mcpguard install {client.key}{option(None if source.plugin else source.folder)}"
        if entry.kind != "remote" and (not source.plugin or (client.key == "codex" and entry.kind == "stdio")):
            return command
        if client.hook:  # one that is there and idle is not to be installed again
            return next((one for one in self._lacking(source) if one != _INSTALL), f"{command} --enforce")
        return _BY_HAND.format(client.key) if source.plugin or source.dialect is Dialect.YAML else f"{command} --bridge"

    def states(self) -> list[str]:
        """The states of the servers whose entries were read. For one that clients share, the worst of those that are used."""
        every = [
            [state for used, state in states if used] or [state for _, state in states] for states in self._states.values()
        ]
        return [max(states, key=lambda state: COUNTED.index(state) if state in COUNTED else -1) for states in every]

    def _lacking(self, source: Source) -> list[str]:
        """See `_lacks_of`, for the account and for the project of a file."""
        place = Path(source.project) if source.project else None if source.plugin else source.folder
        return [self._lacks(source.client, project, place) for project in dict.fromkeys((None, place))]

    def _lacks_of(self, client: Client, project: Path | None, place: Path | None) -> str:
        """What makes a client ask mcpguard before each call of a server: see `why_skipped`; empty if it asks."""
        try:
            asks = deciding(self._machine, client, project)
        except Fault:
            return _INSTALL
        if not any(guard_of(one.command, self.guards, project).state == "known" for one in asks):
            return _INSTALL
        skipped = why_skipped(self._machine, client, project, place)
        return f"{skipped[1]} (its hook is there, but {skipped[0]})" if skipped else ""


def why_skipped(machine: Machine, client: Client, project: Path | None, place: Path | None) -> tuple[str, str] | None:
    """Why the deciding hook in a file does not decide each call of a server, and what to do; None if it does.

    Args:
        machine: The account.
        client: The client.
        project: The project whose file has the hook; None for the account's.
        place: The project in which the client runs; None if it runs elsewhere.

    Raises:
        Fault: The file cannot be read.
    """
    hook = client.hook
    assert hook  # noqa: S101 - see the callers
    for switch in hook.off:
        if is_off(machine, switch, place):
            pattern, *keys, value = switch.split(" | ")
            setting = f"{machine.paths(pattern, place)[0]} has {'.'.join(keys)} = {value}"
            return f"{client.title} skips it, because {setting}", "remove that setting"
    found = deciding(machine, client, project)
    reasons = [reason for one in found if (reason := _why_idle(one, client))]
    if reasons and len(reasons) == len(found):
        return reasons[0]
    if not hook.trust:
        return None
    file = hook_file(machine, hook, project)
    state = content_of(machine.paths(hook.trust)[0])
    for key in ("hooks", "state"):
        state = state.get(key) if isinstance(state, dict) else None
    if all(any(_is_trusted(state or {}, name, one) for name in (file, os.path.realpath(file))) for one in found):
        return None
    return f"{client.title} skips it, because you have not trusted it, or not since it changed", hook.after


def _why_idle(one: Ours, client: Client) -> tuple[str, str] | None:
    """Why a deciding hook lets some calls pass, and what to do; None if it decides all."""
    assert client.hook  # noqa: S101 - see the callers
    words, start = words_of(one.command), f"mcpguard hook {client.key}"
    if ("hook", client.key) not in itertools.pairwise(words):
        return f"it decides nothing, because its command is not {start}", f"write {start} in its place in the file"
    if any(word == "--observe" or word.startswith("MCPGUARD_OBSERVE=") for word in words):
        return "it denies nothing, because its command says to observe", "remove that from its command, if you have seen enough"
    for key in ("async", "asyncRewake", "if"):
        if one.handler.get(key):
            return f"it does not decide each call, because it has {key}", f"remove {key} from the hook in the file"
    if one.entry.get("matcher") not in ("", "*", None, json.loads(client.hook.deciding.form).get("matcher")):
        return f"it does not see each call, because its matcher is {one.entry['matcher']}", "remove the matcher in the file"
    return None


def _is_trusted(states: dict[str, Any], file: Path | str, one: Ours) -> bool:
    """Whether Codex runs a hook: it keeps a hash of the definition. Seen in 0.171.0."""
    event = re.sub(r"(?<=.)(?=[A-Z])", "_", one.event).lower()
    state = states.get(f"{file}:{event}:{one.places[0]}:{one.places[1]}") or {}
    hook = {"async": False, "timeout": 600.0} | one.handler
    timeout_s = int(hook["timeout"]) if isinstance(hook["timeout"], float) else None  # all numbers of a document are floats
    whole = one.entry | {"event_name": event, "hooks": [hook | {"timeout": timeout_s}]}
    text = json.dumps(whole, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    digest = f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"
    return state.get("enabled") is not False and state.get("trusted_hash") == digest


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
