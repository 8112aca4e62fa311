"""`docs/comparison.md` names what `python -m tests.peers` runs, and the README's table is a part of it."""

from tests.pages import README, chapter, generated, rows
from tests.peers import page
from tests.peers.table import PEERS, SERVER
from tests.peers.trial import Reached, most_within

_, TABLE, AFTER = generated(page.PAGE.read_text("utf-8"), "peers")
HEADS, *MEASURED = rows(TABLE)


def test_the_page_has_each_limiter_in_the_version_that_is_installed() -> None:
    versions = [(name, version) for name, version, *_ in MEASURED[:-1]]
    assert [name for name, _ in versions] == [peer.name for peer in PEERS]
    assert set(versions) >= {(peer.name, peer.version) for peer in PEERS if peer.needs}  # mcpguard's may be the last release's
    installed = {row[0]: row[-1] for row in rows(AFTER.partition("\n- **passed**")[0])}
    for peer in PEERS:
        needs = peer.needs.removesuffix(SERVER).strip() or SERVER
        assert installed[peer.name] == (f"`pip install {needs}`" if peer.needs else "this checkout")


def test_the_table_of_the_readme_is_a_part_of_the_page() -> None:
    heads, *lines = rows(chapter(README, "How it compares"))
    assert heads[1:] == [f"{peer.name} {peer.version}" if peer.needs else peer.name for peer in PEERS if peer is not PEERS[1]]
    by_name = {name: dict(zip(HEADS[2:], cells, strict=True)) for name, _, *cells in MEASURED}
    summarized = [label for label, *_ in lines if label in page.COLUMNS]
    assert summarized == list(page.COLUMNS[1:])
    for label, *cells in lines:
        if label in summarized:
            assert cells == [by_name[head.split(" ")[0]][label] for head in heads[1:]], label


def test_calls_count_together_if_they_were_surely_admitted_within_the_span() -> None:
    assert most_within(60, []) == 0
    assert most_within(60, [Reached(0, 1), Reached(30, 31), Reached(58, 59.9)]) == 3
    assert most_within(60, [Reached(0, 2), Reached(59, 60)]) == 1  # perhaps admitted at 0 and 60
    assert most_within(60, [Reached(61, 61), Reached(0, 0.5), Reached(1, 1), Reached(2, 2)]) == 3
