"""Where a store on a server is, and how to open it."""

from typing import TYPE_CHECKING, NamedTuple

from mcpguard.stores.api import Options, Readable, Store
from mcpguard.stores.redis.url import RedisUrl

if TYPE_CHECKING:  # settings are read before the server is started: nothing of a store is loaded for that
    from mcpguard.core.claude_code import AgentNote


class RedisAddress(NamedTuple):
    """A server."""

    url: RedisUrl

    @property
    def shown(self) -> str:
        """See `Address`."""
        return self.url.shown

    def exists(self) -> bool:
        """Whether there can be something in it: connecting will tell."""
        return True

    def load(self) -> None:
        """Import what opening needs."""
        import mcpguard.stores.redis.store  # noqa: F401

    def open(self, options: Options) -> Store:
        """Connect.

        Raises:
            StoreUnavailable: It does not answer, refuses us, or is too old.
        """
        from mcpguard.stores.redis.store import RedisStore

        return RedisStore(self.url, options)

    def read(self, options: Options) -> Readable:
        """See `Address`."""
        return self.open(options)

    def leave_note(self, namespace: str, note: "AgentNote", *, wall_us: int, timeout_s: float) -> None:
        """See `Address`."""
        from mcpguard.stores.redis import notes

        notes.leave(self.url, namespace, note, wall_us=wall_us, timeout_s=timeout_s)
