"""A fixture of tests that change what a slower fixture made."""

import shutil
from pathlib import Path

import pytest


@pytest.fixture
def home(used: Path, tmp_path: Path) -> Path:
    """A copy of the folder that the module's fixture `used` has filled once."""
    shutil.copytree(used, tmp_path, dirs_exist_ok=True)
    return tmp_path
