"""How long a client's hook takes to decide a call, from its start to its end, beside an interpreter that does nothing."""

import json
import subprocess
import sys
import sysconfig
import time
from collections.abc import Sequence
from pathlib import Path

from .effort import Effort
from .report import Row, Section, added, medians
from .variants import GUARD, Variant, prepared

PASS = "python -c pass"
TITLE = "a hook decides a call"

_GIVEN = {
    "session_id": "s",
    "transcript_path": "/t",
    "cwd": "/p",
    "hook_event_name": "PreToolUse",
    "tool_name": "echo",
    "tool_input": {"text": "x"},
    "tool_use_id": "toolu_1",
}


def measure(effort: Effort, folder: Path, guard: Variant) -> list[Section]:
    env = prepared(guard, folder)
    commands = {
        PASS: [sys.executable, "-c", "pass"],
        GUARD.name: [str(Path(sysconfig.get_path("scripts")) / "mcpguard"), "hook", "claude-code", "--enforce"],  # as installed
    }
    times_ms: dict[str, list[float]] = {name: [] for name in commands}
    for start in range(1 + effort.starts[0]):
        for name, command in commands.items():
            time_ms = _run_ms(command, env)
            if start:  # the first finds cold caches and makes the store
                times_ms[name].append(time_ms)
    rows = [Row("p50, ms", medians(times_ms), 1), Row("added, ms", added(times_ms, PASS), 1)]
    return [Section(TITLE, rows)]


def _run_ms(command: Sequence[str], env: dict[str, str]) -> float:
    before = time.perf_counter()
    subprocess.run(command, input=json.dumps(_GIVEN).encode(), env=env, stdout=subprocess.PIPE, check=True)
    return (time.perf_counter() - before) * 1000
