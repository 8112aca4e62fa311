"""How long a client waits for what starts anew: a server behind mcpguard, or a hook that decides a call."""

import json
import subprocess
import sys
import sysconfig
import time
from collections.abc import Sequence
from pathlib import Path

from .rounds import Effort, Row, added, beside, take_turns
from .session import INITIALIZE
from .variants import BARE, GUARD, SDK_SERVER, TINY_SERVER, Variant, prepared

PASS = Variant("python -c pass", (sys.executable, "-c", "pass"))

_GIVEN = {
    "hook_event_name": "PreToolUse",
    "session_id": "s",
    "transcript_path": "/t",
    "cwd": "/p",
    "tool_name": "echo",
    "tool_input": {"text": "x"},
    "tool_use_id": "toolu_1",
}


def measure(variants: Sequence[Variant], effort: Effort, folder: Path) -> list[Row]:
    """From the start of the command to the answer to `initialize`."""
    text = "first answer later than the bare server's, a server that boots in 1.7 ms"
    return [_first_answers(text, variants, TINY_SERVER, effort.of(21), folder)]


def measure_sdk(guard: Variant, effort: Effort, folder: Path) -> list[Row]:
    """The same of a server on the Python SDK."""
    text = "first answer later than the bare server's, an SDK server"
    return [_first_answers(text, (BARE, guard), SDK_SERVER, effort.of(9), folder)]


def _first_answers(text: str, variants: Sequence[Variant], server: Sequence[str], starts: int, folder: Path) -> Row:
    def first_answer_ms(variant: Variant) -> float:
        before = time.perf_counter()
        with variant.start(server, folder) as session:
            session.write(INITIALIZE)
            session.read_answer(0)
            return (time.perf_counter() - before) * 1000

    times_ms = take_turns(variants, 1 + starts, first_answer_ms)
    return Row(text, beside(added(_warm(times_ms), BARE.name)), "ms")


def measure_hook(effort: Effort, folder: Path, guard: Variant) -> list[Row]:
    """A client's hook from its start to its end, beside an interpreter that does nothing."""
    env = prepared(guard, folder)
    program = str(Path(sysconfig.get_path("scripts")) / "mcpguard")  # as installed
    hook = Variant(GUARD.name, (program, "hook", "claude-code", "--enforce"))

    def run_ms(variant: Variant) -> float:
        before = time.perf_counter()
        subprocess.run(variant.prefix, input=json.dumps(_GIVEN).encode(), env=env, stdout=subprocess.PIPE, check=True)
        return (time.perf_counter() - before) * 1000

    times_ms = _warm(take_turns((PASS, hook), 1 + effort.of(21), run_ms))
    text = "a client's hook decides a call, from its start to its end: beyond `python -c pass`"
    return [Row(text, beside(added(times_ms, PASS.name)), "ms")]


def _warm(times_ms: dict[str, list[float]]) -> dict[str, list[float]]:
    """The times without the first of each, which finds cold caches and makes the store."""
    return {name: values[1:] for name, values in times_ms.items()}
