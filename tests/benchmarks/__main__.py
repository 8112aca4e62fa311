"""Measure mcpguard side by side with the bare server, the least relay, `cat` and other programs of its kind.

All figures of one row come from one run on one machine, the variants taking turns; only ratios are worth comparing
between machines.
"""

import argparse
import compileall
import os
import platform
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import mcpguard
from tests.pages import renewed

from . import calls, rates, regression, sizes
from .rounds import PAGE, Effort, Row, markdown
from .session import BenchmarkError
from .variants import BARE, CAT, GUARD, LEAST, SDK_SERVER, TINY_SERVER, Variant

NAMES = ("sdk", "calls", "paced", "redis", "pipelined", "wrappers", "streams", "first-answer", "hook", "sizes")

EPILOG = """\
variants: bare = the server alone; least = two blocking loops in Python, nothing read; cat = SERVER | cat;
mcpguard = three limits a call and its audit row in SQLite; peers = whatever --peer names, for example
  --peer 'warden=VENV/bin/mcp-warden both --max-calls-per-minute 1000000000 --per-tool-limit echo:1000000000 --'
"""


def main(argv: Sequence[str] | None = None) -> int:
    if sys.platform != "linux":
        print("error: the benchmarks read /proc and run on Linux only", file=sys.stderr)
        return 1
    options = _options(argv)
    compileall.compile_dir(Path(mcpguard.__file__).parent, quiet=1)  # as an installation does
    try:
        if options.check:
            return _check()
        if options.renew:
            regression.write(regression.renewed(_ratio))
            return 0
        return _show(options)
    except BenchmarkError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def measure(
    names: Sequence[str], folder: Path, effort: Effort, *, peers: Sequence[Variant] = (), guard: Variant = GUARD
) -> list[Row]:
    """What is measured under these names."""
    relays = [BARE, LEAST, guard, *peers]
    measures: Mapping[str, Callable[[Path], list[Row]]] = {
        "sdk": lambda folder: [
            *calls.measure_sdk(relays, effort, folder),
            *calls.measure_starts("an SDK server", (BARE, guard), SDK_SERVER, effort.of(9), folder),
        ],
        "calls": lambda folder: calls.measure(relays, effort, folder),
        "paced": lambda folder: calls.measure_paced(relays, effort, folder),
        "redis": lambda folder: calls.measure_redis(effort, folder, guard),
        "pipelined": lambda folder: rates.measure(relays[1:], effort, folder),
        "wrappers": lambda folder: rates.measure_wrappers(effort, folder, guard),
        "streams": lambda folder: rates.measure_streams([guard, CAT], effort, folder),
        "first-answer": lambda folder: calls.measure_starts(
            "a server that boots in 1.7 ms", relays, TINY_SERVER, effort.of(21), folder
        ),
        "hook": lambda folder: calls.measure_hook(effort, folder, guard),
        "sizes": lambda folder: sizes.measure(effort, folder, guard),
    }
    found: list[Row] = []
    for name in names:
        print(f"{name} ...", file=sys.stderr, flush=True)
        (folder / name).mkdir()
        found += measures[name](folder / name)
    return found


def _show(options: argparse.Namespace) -> int:
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mcpguard-bench-") as root:
        table = markdown(measure(options.only or NAMES, Path(root), Effort(), peers=options.peer))
    if options.docs:
        PAGE.write_text(renewed(PAGE.read_text("utf-8"), "figures", table), "utf-8")
    took = time.monotonic() - started
    print(f"Python {platform.python_version()}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}, {took:.0f} s")
    print(table)
    return 0


def _check() -> int:
    """Compare with the references: 1 if mcpguard has become slower or larger."""
    failures = regression.check(regression.read(), _ratio)
    for failure in failures:
        print(f"error: {failure}", file=sys.stderr)
    if failures:
        print("hint: if that is meant: python -m tests.benchmarks --renew", file=sys.stderr)
    return 1 if failures else 0


def _ratio(name: str) -> float:
    with tempfile.TemporaryDirectory(prefix="mcpguard-bench-") as folder:
        return regression.measure(name, Path(folder))


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", action="append", choices=NAMES, metavar="NAME", help=f"one of {', '.join(NAMES)}")
    peer = "another program to measure; PREFIX stands before the server's command"
    parser.add_argument("--peer", action="append", default=[], type=_peer, metavar="NAME=PREFIX", help=peer)
    for name, text in (
        ("--docs", "put the figures of a full run into docs/performance.md"),
        ("--check", "only compare with references.toml; fail if mcpguard takes over a quarter more"),
        ("--renew", "only measure the ratios in references.toml anew"),
    ):
        parser.add_argument(name, action="store_true", help=text)
    return parser.parse_args(argv)


def _peer(text: str) -> Variant:
    name, _, prefix = text.partition("=")
    if not name or not prefix:
        raise argparse.ArgumentTypeError("expected NAME=PREFIX")
    return Variant(name, tuple(shlex.split(prefix)))


if __name__ == "__main__":
    sys.exit(main())
