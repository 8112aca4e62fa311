"""One run of the demo, as a user starts it."""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.end_to_end import host

ROOT = Path(__file__).parents[2]
DEMO = [sys.executable, "-m", "mcpguard", "demo"]


def environment(temporary: Path) -> dict[str, str]:
    variables = host.environment(temporary, TMPDIR=str(temporary), HOME=str(temporary))
    del variables["MCPGUARD_HOME"]
    return variables


@dataclass(frozen=True)
class Run:
    status: int
    out: str
    err: str
    left_behind: list[str]

    def row(self, *words: str) -> list[str]:
        """The row of the summary that begins with these words, without them."""
        rows = [line.split() for line in self.out.splitlines()]
        return next(row[len(words) :] for row in rows if row[: len(words)] == list(words))


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("demo")
    done = subprocess.run(DEMO, env=environment(folder), cwd=ROOT, capture_output=True, text=True, check=False)
    return Run(done.returncode, done.stdout, done.stderr, [path.name for path in folder.iterdir()])
