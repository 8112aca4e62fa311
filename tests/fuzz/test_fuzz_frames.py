"""The fuzzer itself, for a bounded time."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
HAS_ATHERIS = importlib.util.find_spec("atheris") is not None


@pytest.mark.skipif(
    not HAS_ATHERIS and os.environ.get("MCPGUARD_REQUIRE_ATHERIS") != "1",
    reason="atheris is not installed: pip install -e '.[fuzz]'",
)
def test_the_fuzzer_finds_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.fuzz.fuzz_frames", "-runs=4000", "-seed=1", f"-artifact_prefix={tmp_path}/"]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"TMPDIR": str(tmp_path)}, capture_output=True, text=True, timeout=250, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert "Done 4000 runs" in done.stderr
