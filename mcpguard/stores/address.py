"""Where a store is: what its URL names, and how to open it."""

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol
from urllib.parse import unquote

from mcpguard.errors import ConfigError

if TYPE_CHECKING:  # settings are read before the server is started: nothing of a store is loaded for that
    from mcpguard.core.claude_code import AgentNote
    from mcpguard.stores.base import Readable, Store


class Options(NamedTuple):
    """How a store is used.

    Attributes:
        namespace: Counters and audit are per namespace.
        timeout_ms: How long a decision waits.
        durability: `full` or `normal`; a server has its own.
        keep_us: How long audit rows are kept.
        max_bytes: How large the audit may grow before the oldest rows go.
    """

    namespace: str = "default"
    timeout_ms: int = 250
    durability: str = "normal"
    keep_us: int = 30 * 86400 * 1_000_000
    max_bytes: int = 256 * 1024 * 1024


class Address(Protocol):
    """What a store's URL names."""

    @property
    def shown(self) -> str:
        """The address as it may be printed: without anything secret."""

    def exists(self) -> bool:
        """Whether there is a store yet: the first wrapper makes it."""

    def load(self) -> None:
        """Import what opening needs: that takes its time however well the store is."""

    def open(self, options: Options) -> "Store":
        """The store; it is made if it is missing.

        Raises:
            StoreUnavailable: It cannot be used.
        """

    def read(self, options: Options) -> "Readable":
        """The store, which exists, to be read only: where that is possible without a lock or the right to write.

        Raises:
            StoreUnavailable: It cannot be read.
        """

    def leave_note(self, namespace: str, note: "AgentNote", *, wall_us: int, timeout_s: float) -> None:
        """Note which agent makes a call, for the store's users, without opening the whole of it.

        A note that cannot be written in time may be dropped without an error: a hook has nobody to tell.

        Raises:
            Exception: It could not be written.
        """


class SqliteAddress(NamedTuple):
    """A file."""

    path: Path

    @property
    def shown(self) -> str:
        """See `Address`."""
        return str(self.path)

    def exists(self) -> bool:
        """See `Address`."""
        try:
            return self.path.stat().st_size > 0 or Path(f"{os.path.realpath(self.path)}-calls").exists()
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError:
            return True  # opening it will say what is the matter

    def load(self) -> None:
        """See `Address`."""
        import mcpguard.stores.sqlite.store  # noqa: F401

    def open(self, options: Options) -> "Store":
        """See `Address`."""
        from mcpguard.stores.sqlite.store import SqliteStore

        return SqliteStore(
            self.path,
            timeout_ms=options.timeout_ms,
            durability=options.durability,
            namespace=options.namespace,
            keep_us=options.keep_us,
            max_bytes=options.max_bytes,
        )

    def read(self, options: Options) -> "Readable":
        """See `Address`."""
        from mcpguard.stores.sqlite.reader import Reader

        return Reader(self.path)

    def leave_note(self, namespace: str, note: "AgentNote", *, wall_us: int, timeout_s: float) -> None:
        """See `Address`."""
        from mcpguard.stores.sqlite import notes

        notes.leave(self.path, namespace, note, wall_us=wall_us, timeout_s=timeout_s)


def has_password(url: str) -> bool:
    """Whether a password stands in a URL."""
    return re.match(r"[^:/?#]+://[^/?#]*:[^/?#]+@", url) is not None


def address(url: str, password: str = "") -> Address:
    """What a URL names.

    Args:
        url: `sqlite:///absolute/path.db`, or a server's: see `stores.redis.address`.
        password: The server's, if it does not stand in the URL.

    Raises:
        ConfigError: It names no store. The message does not repeat it: it may hold a password.
    """
    match = re.fullmatch(r"sqlite://(/.+)", url)
    if match:
        path = unquote(match[1])
        return SqliteAddress(Path(path[1:] if re.match(r"/[A-Za-z]:", path) else path))
    scheme = url.partition("://")[0]
    if not re.fullmatch(r"[a-z][a-z0-9+.-]*://.*", url, re.DOTALL):
        raise ConfigError("store: this is not a URL", 'url = "sqlite:///absolute/path.db"')
    from mcpguard.stores.redis.address import SCHEMES, parse

    if scheme in SCHEMES:
        return parse(url, password)
    if scheme == "sqlite":
        raise ConfigError("store: this is not the URL of a file", 'url = "sqlite:///absolute/path.db"')
    known = " ".join(f"{one}://" for one in ("sqlite", *SCHEMES))
    raise ConfigError(f"store: {scheme}:// is not the URL of a store", f"known: {known}")
