"""The store and its filters, for commands that read or empty it."""

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from mcpguard.config import PATIENCE_MS, Settings
from mcpguard.core.agent import Agent, agent_matches
from mcpguard.core.patterns import glob
from mcpguard.stores.api import Readable, Store


@contextlib.contextmanager
def opened(settings: Settings) -> Iterator[Store]:
    """The store that the settings name; it is made if it is missing.

    Raises:
        ConfigError: The store's URL cannot be.
        StoreUnavailable: It cannot be used.
    """
    store = settings.open_store(least_timeout_ms=PATIENCE_MS)
    try:
        yield store
    finally:
        store.close()


@contextlib.contextmanager
def reading(settings: Settings) -> Iterator[Readable]:
    """The store that the settings name, which exists, to be read: nobody waits for it. Raises as `opened` does."""
    store = settings.read_store()
    try:
        yield store
    finally:
        store.close()


def selects(key: str, pattern: str, text: str) -> bool:
    """Whether a filter's pattern matches a name: an agent's part by part if the pattern has all three, else as a whole."""
    if key == "agent" and Agent.split(pattern) and Agent.split(text):
        return agent_matches(pattern, text)
    return glob(pattern, text)


def tolerant_output() -> None:
    """Let stdout write characters that its encoding does not have as escapes, and be nowhere if it is closed."""
    if sys.stdout is None:
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115 - until we end
    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure:
        reconfigure(errors="backslashreplace")
