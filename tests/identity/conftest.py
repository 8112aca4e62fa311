"""A real server of keys, and the token source of a wrapper."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import provider
from tests.identity.token_holder import Wrapper


@pytest.fixture
def server() -> Iterator[provider.KeyServer]:
    with provider.serving() as serving:
        yield serving


@pytest.fixture
def wrapper(tmp_path: Path) -> Wrapper:
    return Wrapper(tmp_path)
