"""One run of the demo, as a user starts it."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

import pytest

from tests.end_to_end import host

ROOT = Path(__file__).parents[2]
DEMO = [sys.executable, "-m", "mcpguard", "demo"]
SHORT_DEMO = host.program("demo", tuned={"mcpguard.demo.story.LOOP_CALLS": 30})


def environment(temporary: Path) -> dict[str, str]:
    names = ("TMPDIR", "TEMP", "TMP", "HOME", "USERPROFILE")  # on Windows the others
    variables = host.environment(temporary, **dict.fromkeys(names, str(temporary)))
    del variables["MCPGUARD_HOME"]
    return variables


@dataclass(frozen=True)
class Run:
    status: int
    out: str
    err: str
    left_behind: list[str]


def shared_run(factory: pytest.TempPathFactory) -> Run:
    """A run of the demo. All processes that run tests at the same time share it; on Windows each has its own."""
    if sys.platform == "win32":
        return _run(factory)
    import fcntl

    folder = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    file = folder / "demo.json"
    with (folder / "demo.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not file.exists():
            file.write_text(json.dumps(astuple(_run(factory))))
    return Run(*json.loads(file.read_text()))


def made(argv: Sequence[str], temporary: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a demo with this folder for temporary files."""
    variables = environment(temporary) | env
    return subprocess.run(argv, env=variables, cwd=ROOT, capture_output=True, encoding="utf-8", check=False)


def _run(factory: pytest.TempPathFactory) -> Run:
    temporary = factory.mktemp("demo")
    done = made(DEMO, temporary)
    return Run(done.returncode, done.stdout, done.stderr, [path.name for path in temporary.iterdir()])


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return shared_run(tmp_path_factory)
