"""Opens the store for commands that read or empty it, and filters what they read."""

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from mcpguard.config import PATIENCE_MS, Settings
from mcpguard.core.patterns import glob, glob_agent
from mcpguard.stores.api import Readable, Store


@contextlib.contextmanager
def opened(settings: Settings) -> Iterator[Store]:
    """Open the store that the settings name, and create it if it is missing.

    Raises:
        ConfigError: The store's URL is not valid.
        StoreUnavailable: The store cannot be used.
    """
    store = settings.open_store(least_timeout_ms=PATIENCE_MS)
    try:
        yield store
    finally:
        store.close()


@contextlib.contextmanager
def reading(settings: Settings) -> Iterator[Readable]:
    """Open an existing store to read it, without delaying any call. Raises the errors of `opened`."""
    store = settings.read_store()
    try:
        yield store
    finally:
        store.close()


def selects(key: str, pattern: str, text: str) -> bool:
    """Whether a filter's pattern matches a name. An agent is matched part by part if the pattern has three parts."""
    if key == "agent" and pattern.count("::") == text.count("::"):
        return glob_agent(pattern, text)
    return glob(pattern, text)


def tolerant_output() -> None:
    """Escape characters that stdout cannot encode. If stdout is closed, discard the output."""
    if sys.stdout is None:
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115 - open until the process ends
    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure:
        reconfigure(errors="backslashreplace")
