"""Fixtures: what a slower fixture made, a policy that a person wrote, an account with clients, and a strange time zone."""

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mcpguard.clients import plan
from tests.cli.account import Account
from tests.cli.command import BOB, calls
from tests.end_to_end.host import rule
from tests.policy.test_editing import BY_HAND


@pytest.fixture(scope="session")
def used(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two calls by Alice, the second over a limit; and by Bob one of a closed tool and one with a rule in observe mode."""
    home = tmp_path_factory.mktemp("used")
    rules = rule("1/1h", user="*", tool="echo") + rule("deny", tool="closed") + rule("deny", tool="watched", mode="observe")
    calls(home, "echo", 2, rules=rules)
    calls(home, "closed", 1, *BOB)
    calls(home, "watched", 1, *BOB)
    return home


@pytest.fixture
def home(used: Path, tmp_path: Path) -> Path:
    """A copy of the folder that `used` has filled once. Some modules have a `used` of their own."""
    shutil.copytree(used, tmp_path, dirs_exist_ok=True)
    return tmp_path


@pytest.fixture
def account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Account:
    """An account with clients, none of which runs. The machine that runs the tests may run Claude Desktop."""
    monkeypatch.setattr(plan, "is_running", lambda _: False)
    return Account(tmp_path)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A policy that a person wrote."""
    file = tmp_path / "policy.toml"
    file.write_text(BY_HAND, "utf-8", newline="\n")
    return file


@pytest.fixture
def a_day_ahead() -> Iterator[None]:
    """A time zone that is a day ahead of UTC, which `datetime` does not allow."""
    if not hasattr(time, "tzset"):
        pytest.skip("Windows does not take its time zone from TZ")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TZ", "UTC-24")
        time.tzset()
        yield
    time.tzset()
