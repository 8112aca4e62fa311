import re
import time
from pathlib import Path

import pytest

from mcpguard.stores.sqlite.store import SqliteStore
from tests.cli.command import output
from tests.report.week import POLICY, UNTIL_US, fill, week


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a week of calls that ends now."""
    home = tmp_path_factory.mktemp("home")
    (home / "policy.toml").write_text(POLICY, "utf-8")
    store = SqliteStore(home / "mcpguard.db")
    fill(store, list(week(calls_an_hour=20)), later_us=time.time_ns() // 1000 - UNTIL_US)
    store.close()
    return home


def report(home: Path, *argv: str) -> str:
    """The page on stdout."""
    page = output(home, "audit", "report", "-o", "-", *argv)
    assert page.startswith("<!doctype html>")
    assert page.endswith("</html>")
    return page


def calls(page: str) -> int:
    found = re.search(r"<dt>Calls</dt><dd>(.*?)</dd>", page)
    assert found
    return int(found[1].replace("\u202f", ""))


def test_the_report_of_the_last_week_is_written_and_its_totals_are_printed(home: Path, tmp_path: Path) -> None:
    said = output(home, "audit", "report", "-o", str(tmp_path / "r.html"))
    page = (tmp_path / "r.html").read_text("utf-8")
    assert re.fullmatch(rf"wrote \S+r\.html: {calls(page)} calls, \d+ denied\n", said)
    assert "Limits never reached" in page


def test_without_a_name_it_is_in_the_working_folder(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    output(home, "audit", "report")
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_filters_select_the_rows_and_are_named_in_the_report(home: Path) -> None:
    some = report(home, "--tool", "send_*", "--since", "3d", "--until", "1h")
    assert 0 < calls(some) < calls(report(home))
    assert "Only rows that match <code>--tool &#39;send_*&#39;</code>." in some
    assert "search_customers" not in some.partition("Limits never reached")[0]


def test_only_the_period_is_in_the_report(home: Path) -> None:
    all_days, since, until = (calls(report(home, *period)) for period in ((), ("--since", "2d"), ("--until", "2d")))
    assert all_days > since > 0
    assert since + until == all_days


@pytest.mark.posix
def test_a_file_that_exists_is_replaced_whole(home: Path, tmp_path: Path) -> None:
    (tmp_path / "r.html").write_text("old", "utf-8")
    with (tmp_path / "r.html").open() as old:
        output(home, "audit", "report", "-o", str(tmp_path / "r.html"))
        assert old.read() == "old"  # a reader of the old file keeps it
    assert (tmp_path / "r.html").read_text("utf-8").startswith("<!doctype html>")


@pytest.mark.parametrize("period", [("--since", "999999d"), ("--until", "9999-12-31T23:59:59-09:00")])
def test_a_period_may_begin_before_the_first_year_and_end_after_the_last(home: Path, period: tuple[str, str]) -> None:
    report(home, *period)
