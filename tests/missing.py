"""Skips tests for which something is not installed."""

import os
from typing import NoReturn

import pytest


def missing(what: str, *, required: str = "") -> NoReturn:
    """Skip the test with a reason, or fail it if the environment variable `required` is set."""
    if os.environ.get(required):
        pytest.fail(f"{what}, which {required} does not allow")
    pytest.skip(what.partition("\n")[0])
