"""The token source of a wrapper."""

from pathlib import Path

import pytest

from tests.identity.token_holder import Wrapper


@pytest.fixture
def wrapper(tmp_path: Path) -> Wrapper:
    return Wrapper(tmp_path)
