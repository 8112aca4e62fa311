"""The pictures in `docs/images` show the current output of the commands."""

import pytest

from tests.terminal_pictures import IMAGES, shown, svg, words


@pytest.mark.posix
def test_the_pictures_have_the_words_of_a_fresh_run() -> None:
    texts = shown(rows=10_000, loop_calls=300)
    fresh = {name: set(words(svg(name, text))) for name, text in texts.items()}
    drawn = {path.stem: set(words(path.read_text("utf-8"))) for path in IMAGES.glob("*.svg")}
    # How many rows a loop of calls leaves, and so which rows are the last ones, depends on how long it takes
    every_row, last_rows = fresh.pop("audit-tail"), drawn.pop("audit-tail")
    header = set(texts["audit-tail"].plain.splitlines()[1].split())
    assert header <= last_rows <= every_row, "run python -m tests.terminal_pictures"
    assert drawn == fresh, "run python -m tests.terminal_pictures"


def test_the_pictures_ask_no_other_host_for_anything() -> None:
    for path in IMAGES.glob("*.svg"):
        assert 'url("http' not in path.read_text("utf-8")
        assert "@font-face" not in path.read_text("utf-8")
