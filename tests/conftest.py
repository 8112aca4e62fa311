"""Settings and fixtures for all tests."""

from __future__ import annotations

import functools
import gc
import os
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, is_hypothesis_test, settings

if TYPE_CHECKING:
    from tests.provider import KeyServer
    from tests.real_parts.parts import Parts

TESTS = Path(__file__).parent

POSIX = (
    "benchmarks",  # they read /proc
    "peers",  # they run on Linux, as the benchmarks do
    "real_parts",  # programs for POSIX
)
"""Folders that Windows cannot import. Their tests get the mark `posix`, which single tests elsewhere have too."""

if sys.platform == "darwin":  # its folder for temporary files has a name that leaves too little room for that of a socket
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", "/tmp")

settings.register_profile(
    "mcpguard",
    max_examples=25 if sys.platform == "win32" else 100,  # what they find does not depend on the system
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],  # it depends on the speed of the machine
    derandomize=True,
    database=None,
    print_blob=True,
)
settings.load_profile("mcpguard")


@pytest.fixture(scope="session", autouse=True)
def _usual_signals() -> Iterator[None]:
    """What a shell ignores for a command in its background, or `nohup` does, the started programs would ignore too."""
    usual = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT") if hasattr(signal, name)]
    ignored = [number for number in usual if signal.getsignal(number) is signal.SIG_IGN]
    for number in ignored:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    yield
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)


@pytest.fixture(scope="session")
def parts(request: pytest.FixtureRequest) -> Parts:
    """Published clients and servers, which pytest's cache keeps from run to run."""
    from tests.real_parts.parts import Parts  # it uses POSIX locks

    return Parts(Path(request.config.cache.mkdir("real-parts")), own={"python-2": sys.executable})


@pytest.fixture
def keys() -> Iterator[KeyServer]:
    """A server of a provider's keys."""
    from tests import provider  # only these tests need its library

    with provider.serving() as server:
        yield server


@functools.cache
def _is_in(path: Path, *folders: str) -> bool:
    return any(path.is_relative_to(TESTS / name) for name in folders)


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """On Windows, do not import modules that need POSIX. None leaves the decision to pytest."""
    return True if sys.platform == "win32" and _is_in(collection_path, *POSIX) else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests that need POSIX, skip those for Windows elsewhere, and run tests with the mark `waits` first.

    No coverage is measured in tests with generated input: it makes a test take two to three times as long. What only generated
    input reaches should have an example, too.
    """
    for item in items:
        if _is_in(item.path, *POSIX):
            item.add_marker(pytest.mark.posix)
        if is_hypothesis_test(getattr(item, "obj", None)):
            item.add_marker(pytest.mark.no_cover)
    items.sort(key=lambda item: item.get_closest_marker("waits") is None)


def pytest_collection_finish() -> None:
    """Leave what was collected out of all later garbage collections: it stays until the end."""
    gc.freeze()


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Trace nothing in a test without coverage.

    In a process of pytest-xdist, pytest-cov starts two measurements, and pauses only the second one. Then the first goes on.
    """
    tracer = sys.gettrace()
    if item.get_closest_marker("no_cover"):
        sys.settrace(None)
    try:
        return (yield)
    finally:
        sys.settrace(tracer)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print each reason for skipped tests once, with the number of tests."""
    reasons = Counter(report.longrepr[2] for report in terminalreporter.stats.get("skipped", ()))
    for reason, number in sorted(reasons.items()):
        terminalreporter.write_line(f"{number} skipped: {reason.removeprefix('Skipped: ')}")
