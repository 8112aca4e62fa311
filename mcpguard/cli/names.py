"""Known names: those of the newest rows in the audit log, and for completion those that rules select by."""

import contextlib
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Any, Final, TypeVar

import click
from click.shell_completion import CompletionItem

from mcpguard import config
from mcpguard.config import Settings
from mcpguard.errors import closest_word
from mcpguard.identity.agent import Agent
from mcpguard.policy.model import AXES

LOOK_S: Final = 1.0
"""How long the store is read at most. What was found until then is shown."""

ROWS: Final = 3000
"""How many of the newest rows are read."""

LIKE: Final = 0.8
"""How much a known name must be like one that may be misspelt, from 0 to 1."""

_T = TypeVar("_T")
_Complete = Callable[[click.Context, click.Parameter, str], list[CompletionItem[str]]]


def seen(key: str, *, with_patterns: bool = False) -> _Complete:
    """A `shell_complete` function for an option that takes a name.

    Args:
        key: The kind of name: `user`, `agent`, `server`, `tool`, `role`, `scope` or `session`.
        with_patterns: Whether the patterns of rules are shown, too.
    """

    def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
        del param
        names = dict.fromkeys(_in_time(_known(key, ctx.params)))
        return [CompletionItem(name) for name in names if name.startswith(incomplete) and (with_patterns or "*" not in name)]

    return complete


def files(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
    """A `shell_complete` function for the name of a file, which the shell completes."""
    del ctx, param
    return [CompletionItem(incomplete, type="file")]


def words(*known: str) -> _Complete:
    """A `shell_complete` function for an option that takes one of a few words."""
    return lambda _ctx, _param, incomplete: [CompletionItem(word) for word in known if word.startswith(incomplete)]


def unseen(settings: Settings, given: Mapping[str, str | None], *, unlike: tuple[str, ...] = ()) -> Iterator[str]:
    """Warnings of names that none of the newest calls in the audit log has, but that are like one that a call has.

    Args:
        settings: The settings of this machine.
        given: The values of `--user`, `--agent`, `--server` and `--tool`. Patterns, and parts of an agent with `*`, are not
            looked for.
        unlike: Warn of a `tool` or `server` that is like none, too.
    """
    rows = [row for row in _in_time(_newest(settings)) if all(axis in row for axis in AXES)]
    for what, value, names in _sought(given, rows):
        if not value or "*" in value or not names or value in names:
            continue
        near = _nearest(value, names)
        if near or what in unlike:
            hint = f"did you mean {near}?" if near else "compare the name with mcpguard audit tail"
            yield f"none of the newest calls in the audit log has the {what} {value}; {hint}"


def _sought(given: Mapping[str, str | None], rows: list[Mapping[str, Any]]) -> Iterator[tuple[str, str | None, set[str]]]:
    """What is looked for: what it is, its name, and the names that calls have."""
    for key in ("user", "server", "tool"):
        yield key, given.get(key), {str(row[key]) for row in rows}
    wanted = Agent.split(given.get("agent") or "") or Agent()
    agents = [agent for row in rows if (agent := Agent.split(str(row["agent"])))]
    yield "client", wanted.client, {agent.client for agent in agents}
    yield "agent", wanted.name, {agent.name for agent in agents}


def _nearest(value: str, names: set[str]) -> str | None:
    """The name that was probably meant. The users of a domain are not alike only because of the domain."""
    if "@" not in value:
        return closest_word(value, names, least=LIKE)
    user, _, domain = value.partition("@")
    known = {name.partition("@")[0]: name for name in sorted(names, key=lambda name: name.endswith(f"@{domain}"))}
    near = closest_word(user, known, least=LIKE)
    return known[near] if near else None


def _in_time(found: Iterator[_T]) -> list[_T]:
    """What is found within `LOOK_S`, before a failure. A command that reads the store for itself reports the failure."""
    taken: list[_T] = []

    def take() -> None:
        with contextlib.suppress(Exception):
            taken.extend(found)

    looking = threading.Thread(target=take, daemon=True)
    looking.start()
    looking.join(LOOK_S)
    return list(taken)


def _known(key: str, given: dict[str, Any]) -> Iterator[str]:
    """The names of this kind in the policy and the store that the line names."""
    options = {name: given.get(name) for name in ("policy", "store")}
    settings = config.load(os.environ, config=given.get("config") or given.get("config_file"), **options)
    for names in (_of_rules(settings, key), _of_rows(settings, key)):
        with contextlib.suppress(Exception):  # the policy may be broken, and the store readable
            yield from names


def _of_rules(settings: Settings, key: str) -> Iterator[str]:
    from mcpguard.policy.file import load

    policy = load(settings.policy, named=settings.policy_named)
    for rule in policy.rules:
        yield from rule.selectors.get(key, ())


def _of_rows(settings: Settings, key: str) -> Iterator[str]:
    member = {"role": "roles", "session": "client_session"}.get(key, key)
    for record in _newest(settings):
        value = record.get(member)
        if value:
            yield from value if isinstance(value, list) else [str(value)]


def _newest(settings: Settings) -> Iterator[Mapping[str, Any]]:
    """The newest rows of this namespace."""
    if not settings.address.exists():
        return
    with settings.read_store() as store:
        for entry in islice(store.newest(), ROWS):
            if entry.record["namespace"] == settings.namespace:
                yield entry.record
