"""Writes what was found as tables, and puts them into the manual's page."""

import os
import platform
import time
from collections.abc import Mapping, Sequence
from typing import Final

from tests.benchmarks.variants import ROOT
from tests.pages import rows

from .experiments import EDGE, KILLED, ONE, SAYS, SIXTEEN, TIME, Cells
from .table import ALONE, NOT_RUN, PEERS, SERVER, Peer

PAGE: Final = ROOT / "docs" / "comparison.md"
BEGIN: Final = "<!-- peers: `python -m tests.peers --docs` writes the tables that follow -->"
END: Final = "<!-- end of these tables -->"

COLUMNS_OF: Final[Mapping[str, Sequence[str]]] = {
    "one_process": (ONE, SAYS),
    "many_processes": (SIXTEEN,),
    "at_an_edge": (EDGE,),
    "with_kills": (KILLED,),
    "added_time": (TIME,),
}
"""Which columns of the table an experiment fills, by the name of its function."""

COLUMNS: Final = (ONE, SIXTEEN, EDGE, KILLED, SAYS, TIME)


def parts() -> tuple[str, str, str]:
    """The page before its tables, the tables, and the page after them.

    Raises:
        ValueError: A mark is missing.
    """
    before, begin, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    tables, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{PAGE.name} does not have the lines {BEGIN} and {END}")
    return before + begin, tables, end + after


def published() -> dict[str, Cells]:
    """The cells in the page of each limiter whose version is still the same, and of the server alone."""
    versions = {peer.name: peer.version for peer in PEERS} | {ALONE: "–"}
    of_limiters = [row for row in rows(parts()[1]) if len(row) == len(COLUMNS) + 2]
    return {
        name: dict(zip(COLUMNS, cells, strict=True)) for name, version, *cells in of_limiters if versions.get(name) == version
    }


def markdown(peers: Sequence[Peer], found: Mapping[str, Cells]) -> str:
    """The tables: what was found, what was run, and what could not be run."""
    lines = [_line(peer.name, peer.version, found[peer.name]) for peer in peers]
    return "\n\n".join(
        (
            f"Last run on {time.strftime('%d %B %Y', time.gmtime()).lstrip('0')} on Linux with {os.cpu_count()} shared cores "
            f"and Python {platform.python_version()}.",
            _table(("", "version", *COLUMNS), [*lines, _line(ALONE, "–", found.get(ALONE, {}))]),
            _table(
                ("", "decides", "mode, for a limit of N calls a minute", "installed as"),
                [(f"**{peer.name}**", peer.place, peer.mode, _needs(peer)) for peer in peers],
            ),
            _table(
                ("not run", "why", "read from its source", "finding"),
                [(f"**{one.name}**", one.why, one.source, one.finding) for one in NOT_RUN],
            ),
        )
    )


def _line(name: str, version: str, cells: Cells) -> tuple[str, ...]:
    return (f"**{name}**", version, *(cells.get(column, "–") for column in COLUMNS))


def _needs(peer: Peer) -> str:
    return f"`pip install {peer.needs.removesuffix(SERVER).strip() or SERVER}`" if peer.needs else "this checkout"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write(text: str) -> None:
    """Replace the tables in the page.

    Raises:
        ValueError: A mark is missing.
    """
    before, _, after = parts()
    PAGE.write_text(f"{before}\n\n{text}\n\n{after}", encoding="utf-8")
