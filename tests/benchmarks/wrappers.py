"""How throughput changes when 1 to 16 wrappers share a store, each with a client that waits for its answers."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from tests.redis_servers import Server, running

from .effort import Effort
from .report import Row, Section
from .session import BenchmarkError
from .variants import BENCH_SERVER, GUARD, POLICY, PROGRAMS, ROOT, Variant

OUTAGE = "until it is back"  # a wrapper says so when it loses its store; from then on it counts on its own, which is faster


@contextmanager
def redis(folder: Path) -> Iterator[Server]:
    """A server with the usual settings of one that keeps its data."""
    with running(folder / "redis", "--appendonly", "yes") as server:
        yield server


def measure(effort: Effort, folder: Path, guard: Variant = GUARD) -> list[Section]:
    sections = []
    with redis(folder) as server:
        for store, env in (("SQLite", {}), ("Redis", {"MCPGUARD_STORE": server.url})):
            rows = []
            for number in effort.wrappers:
                rates = _together(replace(guard, env={**guard.env, **env}), number, effort, folder / store / str(number))
                share = min(rates) * number / sum(rates)
                rows += [
                    Row(f"{number} at once, calls/s", {GUARD.name: sum(rates)}),
                    Row(f"{number} at once, smallest share", {GUARD.name: share}, 2),
                ]
            sections.append(Section(f"wrappers that share a store in {store}", rows))
    return sections


def _together(variant: Variant, number: int, effort: Effort, folder: Path) -> list[float]:
    """The calls a second of each."""
    home = folder / "home"
    home.mkdir(mode=0o700, parents=True)
    (home / "policy.toml").write_text(POLICY, encoding="utf-8")
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("MCPGUARD_")}
    environ = {**inherited, **variant.env, "PYTHONPATH": str(ROOT), "MCPGUARD_HOME": str(home)}
    command = [sys.executable, str(PROGRAMS / "caller.py"), str(effort.wrapper_seconds), *variant.prefix, *BENCH_SERVER]
    with ExitStack() as stack:
        callers = []
        for at in range(number):
            cwd = folder / str(at)
            cwd.mkdir()
            with (cwd / "caller").open("wb") as err:
                pipe = subprocess.PIPE
                caller = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=err, text=True, cwd=cwd, env=environ)
            stack.enter_context(caller)
            stack.callback(caller.kill)
            callers.append(caller)
        for caller in callers:
            _line(caller, folder)
        for caller in callers:
            if caller.stdin:
                caller.stdin.write("\n")
                caller.stdin.flush()
        rates = [float(_line(caller, folder)) for caller in callers]
    if any(OUTAGE in file.read_text(errors="replace") for file in folder.glob("*/*") if file.is_file()):
        raise BenchmarkError(f"one of {number} wrappers lost its store, and counted on its own")
    return rates


def _line(caller: "subprocess.Popen[str]", folder: Path) -> str:
    line = caller.stdout.readline() if caller.stdout else ""
    if not line:
        said = "\n".join(file.read_text(errors="replace") for file in folder.glob("*/caller"))
        raise BenchmarkError(f"a client of many failed\n{said}")
    return line
