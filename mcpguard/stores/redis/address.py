"""The address of a store on a Redis or Valkey server."""

import contextlib
from collections.abc import Callable, Iterator
from time import monotonic

from mcpguard.light_typing import TYPE_CHECKING, NamedTuple
from mcpguard.stores.api import Options
from mcpguard.stores.redis.url import RedisUrl

if TYPE_CHECKING:  # `run` reads its settings before it starts the server, and loads nothing of a store for that
    from mcpguard.identity.client_agents import AgentNote
    from mcpguard.stores.redis.store import RedisStore


class RedisAddress(NamedTuple):
    """The address of a store on a server."""

    url: RedisUrl

    @property
    def shown(self) -> str:
        """See `Address`."""
        return self.url.shown

    def exists(self) -> bool:
        """Always true: only connecting shows what the server has."""
        return True

    def load(self) -> None:
        """See `Address`."""
        import mcpguard.stores.redis.store  # noqa: F401

    def open(self, options: Options) -> "RedisStore":
        """See `Address`."""
        from mcpguard.stores.redis.store import RedisStore

        return RedisStore(self.url, options)

    def read(self, options: Options, notify: Callable[[str], None]) -> "RedisStore":
        """See `Address`."""
        from mcpguard.stores.redis.store import RedisStore

        return RedisStore(self.url, options, notify=notify)

    def prune(self, options: Options, before_us: int) -> Iterator[int]:
        """See `Address`."""
        from mcpguard.stores.redis import upkeep

        return upkeep.prune(self.url, options.namespace, before_us)

    def leave_note(self, namespace: str, note: "AgentNote", *, wall_us: int, timeout_s: float) -> None:
        """See `Address`. The server deletes notes that expire."""
        from mcpguard.identity.client_agents import NOTE_KEPT_US
        from mcpguard.stores.redis.layout import RedisKeys
        from mcpguard.stores.redis.link import Link, RedisCommand

        deadline_s = monotonic() + timeout_s
        key = RedisKeys(namespace).note(note.key)
        command: RedisCommand = (
            ("SET", key, f"{wall_us} {note.text}", "PX", NOTE_KEPT_US // 1000) if note.text else ("DEL", key)
        )
        with contextlib.closing(Link(self.url, timeout_s=timeout_s, key=key, deadline_s=deadline_s)) as link:
            link.checked(link.ask([command], deadline_s=deadline_s)[0])
