"""Compare mcpguard with other limiters: install each in its pinned version, and run the same experiments on all.

The limit is 60 calls a minute. What counts is how many calls reach the server behind the limiter in the busiest minute:
docs/comparison.md describes each experiment. All of them take about 25 minutes. redis-server must be installed.
"""

import argparse
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

from tests.benchmarks.session import BenchmarkError
from tests.pages import ROOT, renewed
from tests.real_parts.parts import MissingError, Parts

from . import page
from .experiments import CALLS, EXPERIMENTS, OUT_OF_REACH, TIME, Cells, Experiment, added_time, failed
from .table import ALONE, PEERS, SERVER, SERVER_ENVIRONMENT, Peer
from .trial import trial

ADDED_TIME = "added_time"
ALL = [peer.name for peer in PEERS]
NAMES = [*EXPERIMENTS, ADDED_TIME]
EXPECTED = (BenchmarkError, MissingError, OSError, ValueError, KeyError, AssertionError)


def main(argv: Sequence[str] | None = None) -> int:
    options = _options(argv)
    if sys.platform != "linux" or not shutil.which("redis-server"):
        _say("error: the experiments need Linux and redis-server\nhint: apt-get install redis-server")
        return 1
    chosen = [peer for peer in PEERS if not options.only or peer.name in options.only]
    parts = Parts(options.cache, venvs={SERVER_ENVIRONMENT: SERVER, **{peer.name: peer.needs for peer in PEERS}})
    _say("install the server")
    try:
        parts.python(SERVER_ENVIRONMENT)
    except MissingError as error:
        _say(f"error: {error}")
        return 1
    with tempfile.TemporaryDirectory(prefix="mcpguard-peers-") as folder:
        found = measure(chosen, options.experiment or NAMES, parts, Path(folder))
    print(page.markdown(chosen, found))
    if options.docs:
        old = page.published()
        table = page.markdown(PEERS, {name: {**old.get(name, {}), **found.get(name, {})} for name in [*ALL, ALONE]})
        page.PAGE.write_text(renewed(page.PAGE.read_text("utf-8"), "peers", table), "utf-8")
    return 0


def measure(peers: Sequence[Peer], names: Sequence[str], parts: Parts, folder: Path) -> dict[str, Cells]:
    """What the experiments with these names found; for a limiter that could not be installed, why not in every column."""
    found: dict[str, Cells] = {peer.name: {} for peer in peers}
    installed = []
    for peer in peers:
        _say(f"install {peer.name}")
        try:
            if peer.needs:
                parts.python(peer.name)
            installed.append(peer)
        except MissingError as error:
            found[peer.name] = dict.fromkeys(page.COLUMNS, failed(error))
    if ADDED_TIME in names:
        found |= _time(installed, parts, folder / "time", found)
    for name, experiment in EXPERIMENTS.items():
        if name not in names:
            continue
        with ThreadPoolExecutor(experiment.at_once) as pool:
            places = {peer.name: folder / name / peer.name for peer in installed}
            begun = [pool.submit(_attempt, experiment, peer, parts, places[peer.name]) for peer in installed]
            for peer, ended in zip(installed, begun, strict=True):
                found[peer.name] |= ended.result()
    return found


def _attempt(experiment: Experiment, peer: Peer, parts: Parts, folder: Path) -> Cells:
    """What an experiment found, or why it failed in each of its columns."""
    try:
        with trial(peer, parts, folder, CALLS) as one:
            cells = experiment.run(one)
    except EXPECTED as error:
        cells = dict.fromkeys(experiment.columns, failed(error))
    _say(f"{peer.name}: {cells}")
    return cells


def _time(peers: Sequence[Peer], parts: Parts, folder: Path, found: Mapping[str, Cells]) -> dict[str, Cells]:
    _say("added time")
    with ExitStack() as stack:
        bare = stack.enter_context(trial(None, parts, folder / "bare", 0))
        trials = {peer.name: stack.enter_context(trial(peer, parts, folder / peer.name, OUT_OF_REACH)) for peer in peers}
        times = added_time(bare, trials)
    return {name: {**found.get(name, {}), TIME: cell} for name, cell in times.items()}


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.peers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for option, names in (("--only", ALL), ("--experiment", NAMES)):
        parser.add_argument(option, action="append", choices=names, metavar="NAME", help=f"one of: {', '.join(names)}")
    parser.add_argument("--docs", action="store_true", help="put what was found into docs/comparison.md, and keep the rest")
    parser.add_argument("--cache", type=Path, default=ROOT / ".ci" / "peers", help="where to install (default: .ci/peers)")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
