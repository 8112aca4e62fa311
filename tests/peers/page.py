"""What was found, as the table in the manual's page."""

import os
import platform
import time
from collections.abc import Mapping, Sequence
from typing import Final

from tests.pages import ROOT, generated, rows

from .experiments import EDGE, KILLED, ONE, SAYS, SIXTEEN, TIME, Cells
from .table import ALONE, PEERS, Peer

PAGE: Final = ROOT / "docs" / "comparison.md"

COLUMNS: Final = (ONE, SIXTEEN, EDGE, KILLED, SAYS, TIME)


def published() -> dict[str, Cells]:
    """The cells in the page of each limiter whose version is still the same, and of the server alone."""
    versions = {peer.name: peer.version for peer in PEERS} | {ALONE: "–"}
    return {
        name: dict(zip(COLUMNS, cells, strict=True))
        for name, version, *cells in rows(generated(PAGE.read_text("utf-8"), "peers")[1])
        if versions.get(name) == version
    }


def markdown(peers: Sequence[Peer], found: Mapping[str, Cells]) -> str:
    versions = {peer.name: peer.version for peer in peers} | {ALONE: "–"}
    cells = {name: [found.get(name, {}).get(column, "–") for column in COLUMNS] for name in versions}
    lines = [("", "version", *COLUMNS), ["---"] * (len(COLUMNS) + 2)]
    lines += [(f"**{name}**", version, *cells[name]) for name, version in versions.items()]
    return (
        f"Last run on {time.strftime('%d %B %Y', time.gmtime()).lstrip('0')} on Linux with {os.cpu_count()} shared cores "
        f"and Python {platform.python_version()}.\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines)
    )
