"""A real server of keys."""

from collections.abc import Iterator

import pytest

from tests import provider


@pytest.fixture
def server() -> Iterator[provider.KeyServer]:
    with provider.serving() as serving:
        yield serving
