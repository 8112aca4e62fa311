"""The locks of outage stores, which tell who holds them."""

import threading

import pytest

from mcpguard.stores.outage import store as outage_store


class TellingLock:
    """A lock that reports when a thread has to wait for it."""

    def __init__(self, is_waited_for: threading.Event) -> None:
        self._lock = threading.Lock()
        self._is_waited_for = is_waited_for
        self.locked, self.release = self._lock.locked, self._lock.release

    def acquire(self, timeout: float = -1) -> bool:
        if self._lock.acquire(blocking=False):
            return True
        self._is_waited_for.set()
        return self._lock.acquire(timeout=timeout)

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


class Locks:
    """What an outage store takes for `threading`: the two locks of a store, of which upkeep holds one all the time."""

    def __init__(self) -> None:
        self.is_waited_for = threading.Event()
        self._made: list[TellingLock] = []

    def Lock(self) -> TellingLock:  # noqa: N802 - its name in `threading`
        self._made.append(TellingLock(self.is_waited_for))
        return self._made[-1]

    @property
    def held(self) -> int:
        """How many are held."""
        return sum(one.locked() for one in self._made)


@pytest.fixture
def locks(monkeypatch: pytest.MonkeyPatch) -> Locks:
    """The locks of the stores that the test makes."""
    made = Locks()
    monkeypatch.setattr(outage_store, "threading", made)
    return made
