"""Settings for every test, and what several kinds of them share."""

import sys
from pathlib import Path

import pytest
from hypothesis import settings

from tests.real_parts.parts import Parts

settings.register_profile("mcpguard", deadline=None, derandomize=True, database=None, print_blob=True)
settings.load_profile("mcpguard")


@pytest.fixture(scope="session")
def parts(request: pytest.FixtureRequest) -> Parts:
    """Clients and servers as their makers publish them, which pytest's cache keeps from run to run."""
    return Parts(Path(request.config.cache.mkdir("real-parts")), own={"python-2": sys.executable})
