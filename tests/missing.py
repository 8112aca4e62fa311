"""Skips tests for which something is missing."""

import contextlib
import os
from pathlib import Path
from typing import NoReturn

import pytest


def missing(what: str, *, required: str = "") -> NoReturn:
    """Skip the test with a reason, or fail it if the environment variable `required` is set."""
    if os.environ.get(required):
        pytest.fail(f"{what}, which {required} does not allow")
    pytest.skip(what.partition("\n")[0])


def make_link(place: Path, target: Path) -> None:
    """Make a symbolic link, or skip the test: Wine makes none, and Windows only for those who may."""
    with contextlib.suppress(OSError):
        place.symlink_to(target)
    if not place.is_symlink():
        pytest.skip("this system makes no symbolic links, or not for this account")
