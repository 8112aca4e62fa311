"""Names for completion: those that rules select by, and those of the newest rows in the audit log."""

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, Final

import click
from click.shell_completion import CompletionItem

LOOK_S: Final = 1.0
"""How long the store is read at most. What was found until then is shown."""

ROWS: Final = 3000
"""How many of the newest rows are read."""

_Complete = Callable[[click.Context, click.Parameter, str], list[CompletionItem[str]]]


def seen(key: str, *, with_patterns: bool = False) -> _Complete:
    """A `shell_complete` function for an option that takes a name.

    Args:
        key: The kind of name: `user`, `agent`, `server`, `tool`, `role` or `scope`.
        with_patterns: Whether the patterns of rules are shown, too.
    """

    def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
        del param
        found: dict[str, None] = {}
        looking = threading.Thread(target=_look, args=(key, ctx.params, found), daemon=True)
        looking.start()
        looking.join(LOOK_S)
        names = [name for name in list(found) if name.startswith(incomplete) and (with_patterns or "*" not in name)]
        return [CompletionItem(name) for name in names]

    return complete


def files(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
    """A `shell_complete` function for the name of a file, which the shell completes."""
    del ctx, param
    return [CompletionItem(incomplete, type="file")]


def words(*known: str) -> _Complete:
    """A `shell_complete` function for an option that takes one of a few words."""
    return lambda _ctx, _param, incomplete: [CompletionItem(word) for word in known if word.startswith(incomplete)]


def _look(key: str, given: dict[str, Any], found: dict[str, None]) -> None:
    """Put the names into `found`, one after another. A failure ends it: completion has nobody to report it to."""
    with contextlib.suppress(Exception):
        from mcpguard import config

        options = {name: given.get(name) for name in ("policy", "store")}
        settings = config.load(os.environ, config=given.get("config") or given.get("config_file"), **options)
        for names in (_of_rules(settings, key), _of_rows(settings, key)):
            with contextlib.suppress(Exception):  # the policy may be broken, and the store readable
                for name in names:
                    found.setdefault(name)


def _of_rules(settings: Any, key: str) -> Iterator[str]:
    from mcpguard.policy_file import load

    policy, _ = load(settings.policy, named=settings.policy_named)
    for rule in policy.rules:
        yield from rule.selectors.get(key, ())


def _of_rows(settings: Any, key: str) -> Iterator[str]:
    if not settings.address.exists():
        return
    member = "roles" if key == "role" else key
    with settings.read_store() as store:
        for entry in islice(store.newest(), ROWS):
            value = entry.record.get(member)
            if entry.record["namespace"] == settings.namespace and value:
                yield from value if isinstance(value, list) else [str(value)]
