"""Shows a report in headless Chromium. Needs the package `playwright`, and Chromium on PATH or in MCPGUARD_CHROMIUM."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mcpguard.report import gather
from tests.missing import missing
from tests.report.test_gather import of, stored
from tests.report.test_page import HOSTILE, page_of
from tests.report.week import SINCE_US, UNTIL_US, week

PHONE, DESK = 360, 1280


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        missing("playwright is not installed")
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    program = os.environ.get("MCPGUARD_CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    if program is None:
        missing("Chromium is not installed")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(
            executable_path=program, args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        )
        yield started
        started.close()


def pages() -> dict[str, str]:
    hostile = [stored(at, "rate_limited", user=name, tool=name, repeats=9) for at, name in enumerate(HOSTILE)]
    hostile += [stored(at, "allowed", user=name, tool=name, outcome="ok") for at, name in enumerate(HOSTILE)]
    return {
        "week": page_of(gather.gather([list(week())], SINCE_US, UNTIL_US)),
        "hostile": page_of(of(*hostile), filters=f"--user {HOSTILE[1]}"),
        "empty": page_of(of()),
    }


@pytest.mark.parametrize("name", ["week", "hostile", "empty"])
def test_a_browser_shows_it_without_error_or_request_in_both_themes_and_widths(browser: Any, name: str, tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    file.write_text(pages()[name], "utf-8")
    backgrounds = set()
    for theme in ("light", "dark"):
        for width in (PHONE, DESK):
            context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=theme)
            shown = context.new_page()
            said: list[str] = []
            asked: list[str] = []
            shown.on("console", lambda message, said=said: said.append(message.text))
            shown.on("pageerror", lambda error, said=said: said.append(str(error)))
            shown.on("dialog", lambda dialog, said=said: said.append(dialog.message))
            shown.on("request", lambda request, asked=asked: asked.append(request.url))
            shown.goto(file.as_uri())
            assert said == []
            assert asked == [file.as_uri()]
            assert shown.evaluate("document.documentElement.scrollWidth") == width
            backgrounds.add((theme, shown.evaluate("getComputedStyle(document.body).backgroundColor")))
            context.close()
    assert len(backgrounds) == len({colour for _, colour in backgrounds}) == 2


@pytest.mark.parametrize("width", [PHONE, DESK])
def test_a_chart_begins_at_the_newest_calls_where_it_does_not_fit(browser: Any, width: int, tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    file.write_text(pages()["week"], "utf-8")
    context = browser.new_context(viewport={"width": width, "height": 900})
    shown = context.new_page()
    shown.goto(file.as_uri())
    beyond = "[...document.querySelectorAll('.chart .scroll')].map(box => box.firstElementChild.getBoundingClientRect().right"
    ends = shown.evaluate(f"{beyond} - box.getBoundingClientRect().right)")
    assert len(ends) == 5
    assert all(abs(end) < 1 for end in ends)
    context.close()
