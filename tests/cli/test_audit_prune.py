import contextlib
import sqlite3
from pathlib import Path

import pytest

from tests.cli.command import complaint, mcpguard, on_terminal, output, sqlite
from tests.end_to_end.host import audit


@pytest.mark.parametrize(
    ("before", "deleted"),
    [
        ("1h", 0),
        ("9999-01-01T00:00:00Z", 6),
        ("999999d", 0),  # before the first year
        ("0001-01-01T00:00:00+09:00", 0),
        ("9999-12-31T23:59:59.999999Z", 6),  # the last time that can be shown
    ],
)
def test_rows_of_before_a_time_are_deleted_but_for_the_newest(home: Path, before: str, deleted: int) -> None:
    assert output(home, "audit", "prune", "--before", before, "--yes") == f"{deleted} rows deleted\n"
    assert len(audit(home)) == (1 if deleted else 4)


ALL = ("audit", "prune", "--before", "9999-01-01T00:00:00Z")


def test_rows_of_other_namespaces_stay(home: Path) -> None:
    assert output(home, *ALL, "--yes", MCPGUARD_NAMESPACE="other") == "0 rows deleted\n"
    assert len(audit(home)) == 4


def test_it_asks_before_it_deletes(home: Path) -> None:
    status, shown = on_terminal(home, *ALL, typed=b"n\n")
    assert status == 1
    assert "Delete the audit rows before 9999-01-01 00:00:00 UTC in " in shown
    assert "nothing was deleted" in shown
    assert on_terminal(home, *ALL, typed=b"y\n")[1].endswith("6 rows deleted\n")


@pytest.mark.parametrize("argv", [[], ["--before", "soon"], ["--before", "0d"]])
def test_it_needs_a_time(home: Path, argv: list[str]) -> None:
    complaint(home, "audit", "prune", "--yes", *argv)
    assert len(audit(home)) == 4


@pytest.mark.parametrize("argv", [("audit", "prune", "--before", "1d", "--yes"), ("audit", "tail"), ("usage",)])
def test_a_file_of_another_program_is_refused_and_gets_no_files_beside_it(tmp_path: Path, argv: tuple[str, ...]) -> None:
    (tmp_path / "mcpguard").mkdir()
    (tmp_path / "notes.txt").write_text("notes " * 1000, "utf-8")
    with contextlib.closing(sqlite3.connect(tmp_path / "other.db")) as db:
        db.execute("CREATE TABLE other (x)")
    before = sorted(tmp_path.iterdir())
    for name in ("notes.txt", "other.db"):
        done = mcpguard(tmp_path / "mcpguard", *argv, "--store", f"{sqlite(tmp_path)}/{name}")
        assert (done.returncode, done.stdout) == (69, "")
        assert done.stderr.startswith(f"mcpguard: {(tmp_path / name).as_posix()} is not a store of mcpguard: ")
    assert sorted(tmp_path.iterdir()) == before
