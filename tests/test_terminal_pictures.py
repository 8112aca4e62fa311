"""The pictures in `docs/images` show the current output of the commands."""

import sys

import pytest

if sys.platform == "win32":
    pytest.skip("Windows has no pseudo-terminals of this kind", allow_module_level=True)

from tests.terminal_pictures import IMAGES, shown, svg, words


def test_the_pictures_have_the_words_of_a_fresh_run() -> None:
    fresh = {name: set(words(svg(name, text))) for name, text in shown().items()}
    drawn = {path.stem: set(words(path.read_text())) for path in IMAGES.glob("*.svg")}
    assert drawn == fresh, "run python -m tests.terminal_pictures"


def test_the_pictures_ask_no_other_host_for_anything() -> None:
    for path in IMAGES.glob("*.svg"):
        assert 'url("http' not in path.read_text()
        assert "@font-face" not in path.read_text()
