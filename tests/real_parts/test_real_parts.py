"""Some of the matrix: what installs in seconds. All of it: `python -m tests.real_parts.run`."""

import os
import sys
from pathlib import Path

import pytest

from .matrix import CHECKS, CLIENTS, SERVERS
from .pair import Outcome, Pair
from .parts import Parts
from .run import table

PAIRS = (
    ("python-sdk-1, legacy", "py1-lowlevel"),
    ("python-sdk-1, legacy", "py2-mcpserver"),
    ("python-sdk-2, auto", "py2-mcpserver"),
    ("python-sdk-2, auto", "typescript-2"),
    ("python-sdk-2, legacy", "py1-fastmcp"),
    ("typescript-sdk-1, legacy", "everything"),
    ("typescript-sdk-2, auto", "py2-lowlevel"),
    ("typescript-sdk-2, auto", "typescript-2"),
    ("typescript-sdk-2, auto", "memory"),
    ("typescript-sdk-2, legacy", "filesystem"),
)


@pytest.fixture(scope="session")
def parts(request: pytest.FixtureRequest) -> Parts:
    return Parts(Path(request.config.cache.mkdir("real-parts")), own={"python-2": sys.executable})


@pytest.mark.timeout(600)  # it may install them
@pytest.mark.parametrize(("client", "server"), PAIRS)
def test_a_real_client_and_server_lack_nothing_with_the_guard_between_them(
    tmp_path: Path, parts: Parts, client: str, server: str
) -> None:
    one = next(each for each in CLIENTS if each.label == client)
    other = next(each for each in SERVERS if each.name == server)
    outcome = Pair(one, other, parts, tmp_path).run()
    if outcome.missing:
        if os.environ.get("MCPGUARD_REQUIRE_NODE"):
            pytest.fail(outcome.missing)
        pytest.skip(outcome.missing)
    assert not outcome.failed, "\n".join(outcome.why)
    assert {"call", "error", "result", "audit"} <= outcome.verdicts.keys()


def test_the_table_fits_into_100_columns() -> None:
    outcomes = [Outcome(CLIENTS[0], server, "2026-07-28", dict.fromkeys(CHECKS, "FAILED")) for server in SERVERS]
    assert max(map(len, table(outcomes).splitlines())) <= 100
