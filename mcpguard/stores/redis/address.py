"""The address of a store on a Redis or Valkey server."""

from collections.abc import Callable, Iterator

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
        from mcpguard.stores.redis import states, upkeep

        return upkeep.prune(self.url, states.prefix(options.namespace), before_us)

    def leave_note(self, namespace: str, note: "AgentNote", *, wall_us: int, timeout_s: float) -> None:
        """See `Address`."""
        from mcpguard.stores.redis import notes

        notes.leave(self.url, namespace, note, wall_us=wall_us, timeout_s=timeout_s)
