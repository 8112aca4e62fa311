"""Real clients with real servers through the real guard: `python -m tests.real_parts.run`.

Installs them into a cache folder, works through every pair, and prints a table a client. Exit status 1 if anything failed.
It takes half an hour: what is being done goes to stderr.
"""

import argparse
import functools
import itertools
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path

import platformdirs

from .matrix import CHECKS, CLIENTS, SERVERS, Client, Server
from .pair import Outcome, Pair
from .parts import PREFIXES, VENVS, MissingError, Parts

WIDTHS = [max(6, len(check)) for check in CHECKS]


def table(outcomes: Sequence[Outcome]) -> str:
    """The outcomes of one client as text of at most 100 columns."""
    head = f"{'':14}{'era':8}" + " ".join(f"{check:{width}}" for check, width in zip(CHECKS, WIDTHS, strict=True))
    lines = [outcomes[0].client.label, head.rstrip()]
    for outcome in outcomes:
        cells = (outcome.verdicts.get(check, "n/a") for check in CHECKS)
        row = "not here" if outcome.missing else " ".join(f"{cell:{width}}" for cell, width in zip(cells, WIDTHS, strict=True))
        lines.append(f"{outcome.server.name:14}{outcome.version[:7]:8}{row}".rstrip())
    return "\n".join(lines)


def selected(only: Sequence[str]) -> list[tuple[Client, Server]]:
    """The pairs whose names hold every word of one of `only`."""

    def wanted(client: Client, server: Server) -> bool:
        name = f"{client.label} {server.name}"
        return not only or any(all(word in name for word in words.split()) for words in only)

    return [(client, server) for client in CLIENTS for server in SERVERS if wanted(client, server)]


def tell(text: str) -> None:
    """Say on stderr what is being done."""
    sys.stderr.write(text + "\n")


def run_pairs(pool: Executor, pairs: Sequence[Pair], tell: Callable[[str], None]) -> list[Future[Outcome]]:
    """Start all pairs, and tell of each that has ended."""
    ended = itertools.count(1)

    def tell_of(pair: Pair, run: Future[Outcome]) -> None:
        failed = run.exception() or run.result().failed
        missing = not failed and run.result().missing
        result = "FAILED" if failed else "not here" if missing else "ok"
        tell(f"{next(ended)} of {len(pairs)}: {pair.client.label} with {pair.server.name}: {result}")

    runs = []
    for pair in pairs:
        runs.append(pool.submit(pair.run))
        runs[-1].add_done_callback(functools.partial(tell_of, pair))
    return runs


def install(parts: Parts, say: Callable[[str], None]) -> None:
    """Install everything first, so that what is missing is told once."""
    wanted: list[tuple[str, Callable[[str], object]]] = [(name, parts.python) for name in VENVS]
    wanted += [(name, parts.npm) for name in PREFIXES]
    for name, get in wanted:
        tell(f"installing {name}")
        try:
            get(name)
        except MissingError as error:
            say(f"not here: {name}: {error}")


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.real_parts.run", description=__doc__)
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="WORDS",
        help="pairs with these words in 'client, mode server', such as 'auto everything'; may be repeated",
    )
    parser.add_argument("--cache", type=Path, metavar="DIR", help="where they are installed, and kept")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="pairs at a time")
    options = parser.parse_args(argv)
    cache = options.cache or Path(platformdirs.user_cache_dir("mcpguard")) / "real-parts"
    parts = Parts(cache.resolve())

    def say(text: str) -> None:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()

    began = time.monotonic()
    install(parts, say)
    pairs = selected(options.only)
    if not pairs:
        parser.error("no pair has these words in its name")
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory(prefix="real-parts-") as folder, ThreadPoolExecutor(max(1, options.jobs)) as pool:
        homes = [Path(folder).resolve() / str(number) for number in range(len(pairs))]
        todo = [Pair(client, server, parts, home) for (client, server), home in zip(pairs, homes, strict=True)]
        runs = run_pairs(pool, todo, tell)
        for client in CLIENTS:
            mine = [run.result() for run, pair in zip(runs, pairs, strict=True) if pair[0] is client]
            if mine:
                say("\n" + table(mine))
                outcomes += mine
    failed = [outcome for outcome in outcomes if outcome.failed]
    for outcome in failed:
        say(f"\nFAILED {outcome.client.label} with {outcome.server.name}")
        for why in outcome.why:
            say(f"  {why}")
    missing = sum(bool(outcome.missing) for outcome in outcomes)
    took = time.monotonic() - began
    say(f"\n{len(outcomes) - len(failed) - missing} pairs ok, {len(failed)} FAILED, {missing} not here, in {took:.0f} s")
    return 1 if failed or missing else 0


if __name__ == "__main__":
    sys.exit(main())
