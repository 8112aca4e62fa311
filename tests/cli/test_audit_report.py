import re
import time
from pathlib import Path

import pytest

from mcpguard.stores.sqlite.store import SqliteStore
from tests.cli.command import BOUND, mcpguard, permissions_bind, process
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


def calls(page: str) -> int:
    found = re.search(r"<dt>Calls</dt><dd>(.*?)</dd>", page)
    assert found
    return int(found[1].replace("\u202f", ""))


@permissions_bind
def test_a_folder_that_may_not_be_entered_is_one_line_and_a_hint(home: Path, tmp_path: Path) -> None:
    tmp_path.chmod(0)
    done = process(home, "audit", "report", "-o", str(tmp_path / "r.html"), under=BOUND)
    tmp_path.chmod(0o700)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"mcpguard: -o: {tmp_path / 'r.html'} cannot be written: Permission denied\n"
        "hint: check that its folder is writable and the disk is not full\n"
    )


def test_the_report_of_the_last_week_is_written_and_its_totals_are_printed(home: Path, tmp_path: Path) -> None:
    done = mcpguard(home, "audit", "report", "-o", str(tmp_path / "r.html"))
    page = (tmp_path / "r.html").read_text("utf-8")
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(rf"wrote \S+r\.html: {calls(page)} calls, \d+ denied\n", done.stdout)
    assert "Limits never reached" in page


def test_without_a_name_the_report_is_in_the_working_folder(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert mcpguard(home, "audit", "report").returncode == 0
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_the_report_goes_to_stdout_if_asked(home: Path) -> None:
    done = mcpguard(home, "audit", "report", "-o", "-")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("<!doctype html>")
    assert done.stdout.endswith("</html>")


def test_filters_select_the_rows_and_are_named_in_the_report(home: Path) -> None:
    whole, some = (
        mcpguard(home, "audit", "report", "-o", "-", *filters).stdout
        for filters in ((), ("--tool", "send_*", "--since", "3d", "--until", "1h"))
    )
    assert 0 < calls(some) < calls(whole)
    assert "Only rows that match <code>--tool &#39;send_*&#39;</code>." in some
    assert "search_customers" not in some.partition("Limits never reached")[0]


def test_a_filter_by_an_empty_name_is_a_filter_that_matches_no_row(home: Path) -> None:
    page = mcpguard(home, "audit", "report", "-o", "-", "--user", "").stdout
    assert "--user &#39;&#39;" in page
    assert "so it cannot tell whether a limit was never reached" in page
    assert calls(page) == 0


def test_only_the_period_is_in_the_report(home: Path) -> None:
    days = [
        calls(mcpguard(home, "audit", "report", "-o", "-", *period).stdout)
        for period in ((), ("--since", "2d"), ("--until", "2d"))
    ]
    assert days[0] > days[1] > 0
    assert days[1] + days[2] == days[0]


@pytest.mark.posix
def test_a_file_that_exists_is_replaced_whole_and_keeps_its_mode(home: Path, tmp_path: Path) -> None:
    file = tmp_path / "r.html"
    file.write_text("old", "utf-8")
    file.chmod(0o644)
    with file.open() as old:
        assert mcpguard(home, "audit", "report", "-o", str(file)).returncode == 0
        assert old.read() == "old"  # a reader of the old file keeps it
    assert file.read_text("utf-8").startswith("<!doctype html>")
    assert file.stat().st_mode & 0o777 == 0o644
    assert [path.name for path in tmp_path.iterdir()] == ["r.html"]


@pytest.mark.parametrize("period", [("--since", "999999d"), ("--until", "9999-12-31T23:59:59-09:00")])
def test_a_period_may_begin_before_the_first_year_and_end_after_the_last(home: Path, period: tuple[str, str]) -> None:
    done = mcpguard(home, "audit", "report", "-o", "-", *period)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("<!doctype html>")


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (("-o", "/tmp"), 2, "-o: /tmp is a folder"),
        (("-o", "/nowhere/r.html"), 2, f"-o: there is no folder {Path('/nowhere')}"),
        (("--since", "1h", "--until", "2h"), 2, "no time is since 1h and until 2h"),
        (("--since", "9999-01-01"), 2, "--since names a time that has not come yet"),
        (("--axis", "nothing"), 2, "--axis: 'nothing' matches no known value"),
    ],
)
def test_a_wrong_command_line_is_refused(home: Path, arguments: tuple[str, ...], status: int, message: str) -> None:
    done = mcpguard(home, "audit", "report", *arguments)
    assert (done.returncode, done.stdout) == (status, "")
    assert done.stderr.startswith(f"mcpguard: {message}\nhint: ")
