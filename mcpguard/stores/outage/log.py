"""Outage logs: what a wrapper does without its store, in order, for whoever reaches the store next; see `recovery`.

Theory of operation. A log has the records and lines of the call log (`sqlite.call_log`, `sqlite.log_lines`), and two kinds
of lines of its own:

| kind | fields |
|---|---|
| `h` | the head of the log: its id, the clock's base and reading, wall-clock time, a hash of the key of the arguments' hashes |
| `s` | a store that the log is read into: a hash of its key, and the id of its newest row before that |

The wrapper appends to one file, and holds a lock on it. The system releases the lock when the wrapper ends, however it ends.
Whoever then gets the lock owns the log. While there is no file, or the disk does not take more, texts wait in memory. The
number of rows is bounded, so that neither can grow without end.
"""

import contextlib
import errno
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

from mcpguard.errors import StoreUnavailable
from mcpguard.files import StrPath, private_folder, size_bytes
from mcpguard.light_typing import Final, NamedTuple, Self
from mcpguard.limiter.plan import Counter
from mcpguard.locks import LifeSign
from mcpguard.session.audit import Outcome, Row
from mcpguard.session.verdict import FORWARDED
from mcpguard.stores.address import SqliteAddress
from mcpguard.stores.api import Address, Clock, Recoverable
from mcpguard.stores.clock import base_id
from mcpguard.stores.filesystem import refuse_network
from mcpguard.stores.sqlite import call_log, log_lines
from mcpguard.stores.sqlite.call_log import CHECKSUM_BYTES, START, Position
from mcpguard.text.digest import blake2b

HEAD: Final = "h"
SEAL: Final = "s"

MAX_FOLDER_BYTES: Final = 256 * 1024 * 1024
"""No new file is made while all files of the store and namespace together exceed this."""

MAX_DETAIL_CHARS: Final = 64 * 1024
"""The longest detail of a row. The store may never take a longer one in time, and no later row would be written then."""

_READ_BYTES: Final = 256 * 1024


class Bounds(NamedTuple):
    """How much is kept of an outage.

    Attributes:
        rows: How many rows of forwarded calls a log has, and how many other rows. A log that is read into the store and the one
            that follows it each have as many.
        chars: The same bound for their text, which includes the calls' arguments if the audit log keeps them in full.
        counters: How many counters are counted without the store. A call that needs one more is denied until windows have
            passed.
        batch: How many rows and outcomes are written to the store at once. It takes a few milliseconds, for which a decision
            may have to wait.
    """

    rows: int = 10_000
    chars: int = 16 * 1024 * 1024
    counters: int = 20_000
    batch: int = 100


def key_id(args_key: bytes) -> str:
    """A hash of a store's key, by which a log tells stores apart; empty if the key is not known."""
    return blake2b(b"mcpguard", key=args_key, digest_size=8).hexdigest() if args_key else ""


class OutageFolder:
    """The outage logs of all wrappers of one store and namespace.

    Args:
        folder: The folder. It is made if it is missing, with mode 0700.
        prefix: The beginning of the files' names.
        base: Returns an id of the start of this machine's clock, see `stores.clock.base_id`.
        max_bytes: See `MAX_FOLDER_BYTES`.
    """

    def __init__(
        self, folder: StrPath, prefix: str, *, base: Callable[[], str] = base_id, max_bytes: int = MAX_FOLDER_BYTES
    ) -> None:
        self.base = base
        self._folder = os.fspath(folder)
        self._prefix = prefix
        self._max_bytes = max_bytes

    @classmethod
    def of(cls, address: Address, namespace: str, database: str) -> Self:
        """The outage logs of a store and namespace: beside a store that is a file, else beside the account's `database`.

        Links are resolved, so that wrappers that name one file by different links read each other's logs.
        """
        file = os.path.realpath(address.path) if isinstance(address, SqliteAddress) else None
        names = f"{file or address.shown}\0{namespace}".encode(errors="surrogatepass")  # a path need not be UTF-8
        folder, name = os.path.split(file) if file else (os.path.dirname(database), "mcpguard")
        return cls(folder, f"{name}-outage-{blake2b(names, digest_size=8).hexdigest()}-")

    def create(self) -> LifeSign:
        """Make and lock a new file, of mode 0600.

        Raises:
            OSError: It cannot be made, or the files together exceed `max_bytes`.
            StoreUnavailable: The folder is on a network file system, whose locks are not reliable.
        """
        private_folder(self._folder)
        refuse_network(self._folder)
        if sum(map(size_bytes, self._paths())) > self._max_bytes:  # another wrapper may just take one in
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), self._folder)
        name = f"{self._prefix}{time.time_ns():x}-{os.urandom(4).hex()}"  # others read them in this order
        return LifeSign(os.path.join(self._folder, name))

    def left_behind(self) -> Iterator[LifeSign]:
        """Lock and return the files of wrappers that have ended."""
        with contextlib.suppress(OSError, StoreUnavailable):
            refuse_network(self._folder)
            for path in self._paths():
                with contextlib.suppress(OSError):
                    if not os.path.islink(path):  # somebody else may have made it
                        yield LifeSign(path)

    def _paths(self) -> list[str]:
        return [os.path.join(self._folder, name) for name in sorted(os.listdir(self._folder)) if name.startswith(self._prefix)]


class Means(NamedTuple):
    """What a wrapper makes outage logs with.

    Attributes:
        folder: Where the files are; None for nowhere.
        clock: The clock of the charges.
        wall: Wall-clock time, from which the age of charges follows after the machine restarts.
        bounds: How much is kept.
    """

    folder: OutageFolder | None
    clock: Clock
    wall: Clock
    bounds: Bounds


class OutageLog:
    """The log of one outage of a wrapper.

    Rows have provisional ids: negative numbers, in the order of the rows, that no other log has.

    Args:
        means: What it is made with.
        key: The `key_id` of the store that failed; empty if none was used.

    Attributes:
        id: The log's id, 13 hexadecimal digits.
        key: The same as the argument.
        path: The file; empty if there is none.
        to_disk: Whether texts are written to a file. Until then they wait in memory.
        rows: How many rows it has.
        read_rows: How many of them a store has.
        dropped: How many rows of denials had no room.
        seal: The `key_id` and the newest row of the store that it was last read into; None if there was none.
        shift_us: How far the clock is ahead of the clock of the charges.
        damaged: Whether the file has something after its last whole record.
    """

    def __init__(self, means: Means, key: str = "") -> None:
        self.id = f"{int.from_bytes(os.urandom(8)) >> 12:013x}"
        self.key = key
        self.path = ""
        self.to_disk = False
        self.rows = self.read_rows = self.dropped = self.shift_us = 0
        self.seal: tuple[str, int] | None = None
        self.damaged = False
        self.bounds = means.bounds
        self._means = means
        self._folder = means.folder
        self._file: LifeSign | None = None
        self._at = START
        self._waiting: list[str] = []
        self._is_failing = False  # whether the last write failed
        self._kept = {True: [0, 0], False: [0, 0]}  # rows and their text, of forwarded calls and others

    @classmethod
    def of_file(cls, means: Means, folder: OutageFolder, file: LifeSign) -> "OutageLog":
        """The log that another wrapper has left in a locked file.

        Raises:
            OSError, ValueError: The file cannot be read, or has no log.
        """
        log = cls(means)
        log._file, log.path, log.to_disk = file, file.path, True
        then_us = ""
        for text, after in log._stored():
            log._at = after
            kind, *fields = text.split("\t")
            if kind == HEAD:
                log.id, base, then_us, then_wall_us, log.key = fields
                if base != folder.base():
                    log.shift_us = means.clock() - int(then_us) - (means.wall() - int(then_wall_us))
            elif kind == SEAL:
                log.seal = fields[0], int(fields[1])
        size = os.fstat(file.fd).st_size
        log.damaged = size > log._at.end
        if not then_us and size and any(_read(file, size, 0)):  # a power cut may leave zeros
            raise ValueError("it is not an outage log")
        return log

    # writing

    @property
    def has_room(self) -> bool:
        """Whether a call may be forwarded: a call whose row has no room must not be."""
        rows, chars = self._kept[True]
        return rows < self.bounds.rows and chars < self.bounds.chars

    @property
    def next_row_id(self) -> int:
        """The provisional id of the next row."""
        return self.row_id(self.rows)

    def row_id(self, at: int) -> int:
        """The provisional id of a row, by its index in the log."""
        return -1 - int(self.id, 16) - at

    @property
    def is_empty(self) -> bool:
        """Whether nothing was logged."""
        return self._at is START and not self._waiting

    def row(self, row: Row, counters: Iterable[Counter] = (), charged_us: int | None = None, charged: str = "") -> None:
        """Log a row, with what the call was charged on. A denial may be dropped. The caller has looked for room for others.

        Args:
            row: The row.
            counters: The counters charged.
            charged_us: The time of the charge.
            charged: See `log_lines.charges`.
        """
        if row.detail:
            row = row._replace(detail=log_lines.shortened(row.detail, MAX_DETAIL_CHARS, "a log of an outage"))
        kept = self._kept[row.decision in FORWARDED]
        if row.decision not in FORWARDED and (kept[0] >= self.bounds.rows or kept[1] >= self.bounds.chars):
            self.dropped += 1
            return
        kept[0] += 1
        kept[1] += len(row.detail or "") + len(row.request_id or "")
        self.rows += 1
        self._waiting.append("\n".join([*map(log_lines.counter_line, counters), log_lines.row_line(row, charged_us, charged)]))

    def failure(self, counter: Counter, charged_us: int, charged: str) -> None:
        """Log that a call that failed was charged on a counter of errors."""
        self._waiting.append(f"{log_lines.counter_line(counter)}\n{log_lines.charged_line(charged_us, charged)}")

    def outcomes(self, outcomes: Sequence[Outcome]) -> None:
        """Log outcomes of rows, of this log or of the store that `key` names."""
        self._waiting += map(log_lines.outcome_line, outcomes)

    def flush(self, *, is_retry: bool = False) -> bool:
        """Write what waits to the file. Returns whether the file has all.

        Args:
            is_retry: Whether to try even if the last write failed. Calls do not: it would keep each of them waiting.
        """
        if not self.to_disk or self._folder is None or (self._is_failing and not is_retry):
            return False
        try:
            if self._waiting:
                self._write(self._waiting)
        except (OSError, StoreUnavailable):
            self._is_failing = True
            return False
        self._waiting, self._is_failing = [], False
        return True

    def _write(self, texts: Iterable[str]) -> None:
        begin, data = self._at.end, b""
        if self._at is START:
            assert self._folder is not None  # noqa: S101 - else nothing is written
            if self._file is None:
                self._file = self._folder.create()
                self.path = self._file.path
            head = (HEAD, self.id, self._folder.base(), f"{self._means.clock()}", f"{self._means.wall()}", self.key)
            texts = ["\t".join(head), *texts]
            begin, data = 0, START.checksum
        packed, after = call_log.pack(self._at, texts)
        data += packed
        assert self._file is not None  # noqa: S101 - it was made with the first record
        os.lseek(self._file.fd, begin, os.SEEK_SET)
        if os.write(self._file.fd, data) < len(data):
            with contextlib.suppress(OSError):  # else the next record is written over it
                os.ftruncate(self._file.fd, begin)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.path)
        self._at = after

    # reading

    def begin_reading(self, store: Recoverable) -> int | None:
        """Note that the log is read into a store, before the store gets anything of it.

        If the file cannot take the note, it is removed, because another wrapper would read it into the store again.

        Args:
            store: The store.

        Returns:
            The id of the store's newest row before the store was given rows of this log; None if it was given none before.
        """
        key = key_id(store.args_key)
        if self.seal and self.seal[0] == key:
            return self.seal[1]
        newest = next(store.newest(), None)
        self.seal = key, newest.row_id if newest else 0
        self._waiting.append(f"{SEAL}\t{key}\t{self.seal[1]}")
        if not self.flush() and self._file is not None:
            self._waiting = [text for text, _ in self._stored()] + self._waiting
            self.remove()
            self._folder, self._at = None, START
        return None

    def texts(self) -> Iterator[str]:
        """What was logged, in order, without head and seals. The file has a beginning of it."""
        for text, _ in self._stored():
            if text[0] not in {HEAD, SEAL}:
                yield text
        yield from [text for text in self._waiting if text[0] not in {HEAD, SEAL}]

    def _stored(self) -> Iterator[tuple[str, Position]]:
        """The whole records of the file, each with the position after it."""
        at = START
        while self._file is not None:
            begin = at.end - CHECKSUM_BYTES
            data = _read(self._file, _READ_BYTES, begin)
            if (length := call_log.first_length(data, at)) > len(data):
                data = _read(self._file, length, begin)
            found = call_log.texts(data, at)
            if not found:
                return
            yield from found
            at = found[-1][1]

    # the end

    def leave(self) -> tuple[int, int]:
        """Leave the file to other wrappers. Returns how many rows it has that no store has, and how many rows are lost."""
        self.to_disk = True
        self.flush(is_retry=True)
        self.close()
        waiting = self.rows - (self._at.row - START.row)
        return max(0, self.rows - self.read_rows - waiting), self.dropped + waiting

    def remove(self) -> None:
        """Empty and remove the file. If removing fails, the next wrapper that finds the empty file removes it."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file.fd, 0)
            self._file.end()
            self._file = None

    def close(self) -> None:
        """Release the file to whoever locks it next."""
        if self._file is not None:
            self._file.close()
            self._file = None


def _read(file: LifeSign, count: int, at: int) -> bytes:
    os.lseek(file.fd, at, os.SEEK_SET)
    return os.read(file.fd, count)
