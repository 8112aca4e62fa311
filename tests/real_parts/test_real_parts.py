"""Real clients with real servers through the real guard; with `MCPGUARD_REAL_PARTS=1` every pair of them."""

import os
from pathlib import Path

import pytest

from tests.missing import missing

from .matrix import CLIENTS, SERVERS
from .pair import Pair
from .parts import MissingError, Parts

FEW = (
    "python-sdk-1, legacy, python-1",
    "python-sdk-1, legacy, python-2",
    "python-sdk-2, auto, python-2",
    "python-sdk-2, auto, everything",
    "python-sdk-2, legacy, python-1",
    "typescript-sdk-1, legacy, everything",
    "typescript-sdk-2, auto, python-2",
    "typescript-sdk-2, auto, typescript-2",
    "typescript-sdk-2, auto, memory",
    "typescript-sdk-2, legacy, filesystem",
)
ALL = {f"{client.label}, {server.name}": (client, server) for client in CLIENTS for server in SERVERS}
PAIRS = ALL if os.environ.get("MCPGUARD_REAL_PARTS") == "1" else FEW


@pytest.mark.timeout(600)  # it may install them
@pytest.mark.parametrize("name", PAIRS)
def test_a_real_client_and_server_lack_nothing_with_the_guard_between_them(tmp_path: Path, parts: Parts, name: str) -> None:
    pair = Pair(*ALL[name], parts, tmp_path)
    try:
        pair.run()
    except MissingError as error:
        missing(str(error), required="MCPGUARD_REQUIRE_NODE")
    assert not pair.why, "\n".join(pair.why)
    assert pair.checked >= {"call", "error", "result", "audit"}
