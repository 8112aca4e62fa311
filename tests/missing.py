"""What a test needs and is not here."""

import os
from typing import NoReturn

import pytest


def missing(what: str, *, required: str = "") -> NoReturn:
    """Skip the test with a reason, or fail it where a variable of the environment says that nothing may be missing."""
    if os.environ.get(required):
        pytest.fail(f"{what}, which {required} does not allow")
    pytest.skip(what.partition("\n")[0])
