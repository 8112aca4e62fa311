"""Settings for every test, and what several kinds of them share."""

import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.real_parts.parts import Parts

settings.register_profile(
    "mcpguard",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],  # it measures the machine
    derandomize=True,
    database=None,
    print_blob=True,
)
settings.load_profile("mcpguard")


@pytest.fixture(scope="session")
def parts(request: pytest.FixtureRequest) -> Parts:
    """Clients and servers as their makers publish them, which pytest's cache keeps from run to run."""
    return Parts(Path(request.config.cache.mkdir("real-parts")), own={"python-2": sys.executable})


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say once for each reason how many tests were skipped for it."""
    reasons = Counter(report.longrepr[2] for report in terminalreporter.stats.get("skipped", ()))
    for reason, number in sorted(reasons.items()):
        terminalreporter.write_line(f"{number} skipped: {reason.removeprefix('Skipped: ')}")
