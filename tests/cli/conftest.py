"""Fixtures of tests that change what a slower fixture made, and of tests of an account with clients."""

import shutil
from pathlib import Path

import pytest

from tests.cli.account import Account


@pytest.fixture
def home(used: Path, tmp_path: Path) -> Path:
    """A copy of the folder that the module's fixture `used` has filled once."""
    shutil.copytree(used, tmp_path, dirs_exist_ok=True)
    return tmp_path


@pytest.fixture
def account(tmp_path: Path) -> Account:
    return Account(tmp_path)
