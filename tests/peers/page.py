"""Writes what was found as a table, and puts it into the manual's page."""

import os
import platform
import time
from collections.abc import Mapping, Sequence
from typing import Final

from tests.benchmarks.variants import ROOT
from tests.pages import rows

from .experiments import EDGE, KILLED, ONE, SAYS, SIXTEEN, TIME, Cells
from .table import ALONE, PEERS, Peer

PAGE: Final = ROOT / "docs" / "comparison.md"
BEGIN: Final = "<!-- peers: `python -m tests.peers --docs` writes the table that follows -->"
END: Final = "<!-- end of this table -->"

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
    """The page before its table, the table, and the page after it.

    Raises:
        ValueError: A mark is missing.
    """
    before, begin, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    table, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{PAGE.name} does not have the lines {BEGIN} and {END}")
    return before + begin, table, end + after


def published() -> dict[str, Cells]:
    """The cells in the page of each limiter whose version is still the same, and of the server alone."""
    versions = {peer.name: peer.version for peer in PEERS} | {ALONE: "–"}
    return {
        name: dict(zip(COLUMNS, cells, strict=True))
        for name, version, *cells in rows(parts()[1])
        if versions.get(name) == version
    }


def markdown(peers: Sequence[Peer], found: Mapping[str, Cells]) -> str:
    """The table of what was found, and when."""
    versions = {peer.name: peer.version for peer in peers} | {ALONE: "–"}
    cells = {name: [found.get(name, {}).get(column, "–") for column in COLUMNS] for name in versions}
    lines = [("", "version", *COLUMNS), ["---"] * (len(COLUMNS) + 2)]
    lines += [(f"**{name}**", version, *cells[name]) for name, version in versions.items()]
    return (
        f"Last run on {time.strftime('%d %B %Y', time.gmtime()).lstrip('0')} on Linux with {os.cpu_count()} shared cores "
        f"and Python {platform.python_version()}.\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines)
    )


def write(text: str) -> None:
    """Replace the table in the page.

    Raises:
        ValueError: A mark is missing.
    """
    before, _, after = parts()
    PAGE.write_text(f"{before}\n\n{text}\n\n{after}", encoding="utf-8")
