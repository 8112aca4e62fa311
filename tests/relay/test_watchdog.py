"""The watchdog of the server's process group."""

import errno
import os
from typing import NoReturn

import pytest

from mcpguard.relay.watchdog import Watchdog


@pytest.mark.posix
def test_a_session_goes_on_without_a_watchdog_if_no_descriptor_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> NoReturn:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(os, "pipe", refuse)
    Watchdog(os.getpid()).dismiss()
