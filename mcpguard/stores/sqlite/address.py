"""The address of an SQLite store, and how to open it."""

import os
from collections.abc import Callable, Iterator

from mcpguard.files import is_there
from mcpguard.light_typing import TYPE_CHECKING, NamedTuple
from mcpguard.stores.api import Options, Readable, Store

if TYPE_CHECKING:  # settings are read before the server is started: nothing of a store is loaded for that
    from mcpguard.identity.client_agents import AgentNote


class SqliteAddress(NamedTuple):
    """The path of a database."""

    path: str

    @property
    def shown(self) -> str:
        """See `Address`."""
        return self.path

    def exists(self) -> bool:
        """See `Address`."""
        from mcpguard.stores.sqlite.call_log import log_path

        try:
            return os.stat(self.path).st_size > 0 or is_there(log_path(self.path))
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError:
            return True  # opening it will report the error

    def load(self) -> None:
        """See `Address`."""
        import mcpguard.stores.sqlite.store
        import mcpguard.stores.sqlite.upkeep  # noqa: F401

    def open(self, options: Options) -> Store:
        """See `Address`."""
        from mcpguard.stores.sqlite.store import SqliteStore

        return SqliteStore(self.path, options)

    def read(self, options: Options, notify: Callable[[str], None]) -> Readable:
        """See `Address`."""
        from mcpguard.stores.sqlite.reader import Reader

        return Reader(self.path, notify=notify)

    def prune(self, options: Options, before_us: int) -> Iterator[int]:
        """See `Address`."""
        from mcpguard.stores.sqlite.upkeep import prune

        return prune(self.path, options, before_us)

    def leave_note(self, namespace: str, note: "AgentNote", *, wall_us: int, timeout_s: float) -> None:
        """See `Address`."""
        from mcpguard.stores.sqlite import notes

        notes.leave_note(self.path, namespace, note, wall_us=wall_us, timeout_s=timeout_s)
