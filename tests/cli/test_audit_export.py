import contextlib
import csv
import errno
import json
import os
import select
import signal
import stat
import subprocess
import sys
from contextlib import AbstractContextManager
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest

from mcpguard.cli import commands
from mcpguard.cli.audit import export
from mcpguard.locks import lock_file
from mcpguard.session.audit import MEMBERS
from mcpguard.stores.sqlite.call_log import CallLog, beside, log_path
from tests.cli.command import calls, complaint, line_of, mcpguard, objects, output, process, running
from tests.end_to_end.host import DEADLINE_S, until


@pytest.fixture
def home(used: Path) -> Path:
    """No copy: an export changes nothing."""
    return used


def lines_of(home: Path, *argv: str) -> list[str]:
    return output(home, "audit", "export", *argv).splitlines()


def test_json_lines_are_the_records(home: Path) -> None:
    records = mcpguard(home, "audit", "tail", "-n", "100", "--json").stdout.splitlines()
    assert lines_of(home) == records
    assert lines_of(home, "--denied") == [one for one in records if json.loads(one)["decision"] in {"rate_limited", "denied"}]
    assert lines_of(home, "-o", "-", "--user", "nobody") == []


def test_the_format_is_the_one_that_is_chosen(home: Path) -> None:
    heading, *rows = lines_of(home, "--format", "csv", "--tool", "*")
    assert (heading, len(rows)) == (",".join(MEMBERS), 4)
    events = [(one["class_uid"], one["action"]) for one in objects(home, "audit", "export", "--format", "ocsf")]
    assert events == [(6003, "Allowed"), (6003, "Denied"), (6003, "Denied"), (6003, "Allowed")]


def test_a_file_is_private_and_not_replaced(home: Path, tmp_path: Path) -> None:
    file = tmp_path / "out.jsonl"
    assert mcpguard(home, "audit", "export", "-o", str(file)).stderr == f"{len(lines_of(home))} rows written\n"
    assert file.read_text("utf-8").splitlines() == lines_of(home)
    assert sys.platform == "win32" or stat.S_IMODE(file.stat().st_mode) == 0o600  # Windows has access lists
    assert [path.name for path in tmp_path.iterdir()] == ["out.jsonl"]
    file.write_text("mine", "utf-8")
    assert "exists, and is not replaced" in complaint(home, "audit", "export", "-o", str(file))
    assert file.read_text("utf-8") == "mine"
    assert mcpguard(home, "audit", "export", "-o", "/dev/null").returncode == 0


def test_a_file_that_appears_meanwhile_is_not_replaced(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, really = tmp_path / "out", export._pages

    def pages(*args: Any, **more: Any) -> Any:
        file.write_text("theirs", "utf-8")
        return really(*args, **more)

    monkeypatch.setattr(export, "_pages", pages)
    said = complaint(home, "audit", "export", "-o", str(file))
    assert said.startswith(f"mcpguard: {file} exists by now, and is not replaced\n")
    assert file.read_text("utf-8") == "theirs"
    assert list(tmp_path.iterdir()) == [file]


FULL = pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
HINT = "hint: check that its folder is writable and the disk is not full\n"


@FULL
@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "cannot write the output: No space left on device\n"),
        (["-o", "/dev/full"], f"-o: /dev/full cannot be written: No space left on device\n{HINT}"),
    ],
)
def test_a_full_disk_is_one_line_and_a_hint_for_a_named_file(home: Path, argv: list[str], message: str) -> None:
    done = process(home, "audit", "export", *argv, under=("sh", "-c", 'exec "$@" >/dev/full', "sh"))
    assert (done.returncode, done.stderr) == (1, f"mcpguard: {message}")


@pytest.mark.parametrize("more", [(), ("--follow",)])
def test_where_no_file_can_be_is_a_usage_error_and_leaves_none(home: Path, tmp_path: Path, more: tuple[str, ...]) -> None:
    missing = tmp_path / "missing"
    said = complaint(home, "audit", "export", *more, "-o", str(missing / "out"))
    assert said == f"mcpguard: -o: there is no folder {missing}\nhint: create it, or name another file\n"
    said = complaint(home, "audit", "export", *more, "-o", str(tmp_path))
    assert said == f"mcpguard: -o: {tmp_path} is a folder\nhint: name a file\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.posix
def test_a_reader_that_leaves_a_named_pipe_is_an_error_that_names_it(tmp_path: Path) -> None:
    calls(tmp_path, "echo", 1)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    with running(tmp_path, "audit", "export", "--follow", "-o", str(pipe)) as following:
        assert select.select([reader], [], [], DEADLINE_S)[0]
        os.close(reader)
        calls(tmp_path, "echo", 1)
        said = following.communicate(timeout=DEADLINE_S)[1].decode()
    assert (following.returncode, said) == (1, f"mcpguard: -o: {pipe} cannot be written: Broken pipe\n{HINT}")


@pytest.mark.posix
@pytest.mark.parametrize("stderr", ["&-", pytest.param("/dev/full", marks=FULL)])
def test_all_rows_are_written_whether_or_not_stderr_takes_anything(home: Path, tmp_path: Path, stderr: str) -> None:
    file, shell = tmp_path / "rows.jsonl", ("sh", "-c", f'exec "$@" 2>{stderr}', "sh")
    assert process(home, "audit", "export", under=shell).stdout.splitlines() == lines_of(home)
    process(home, "audit", "export", "-o", str(file), under=shell)
    assert file.read_text("utf-8").splitlines() == lines_of(home)


def test_rows_are_written_where_a_process_may_not_lower_its_priority(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: int) -> NoReturn:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(commands, "os", SimpleNamespace(nice=refuse))
    assert len(lines_of(home)) > 0


def following(home: Path, *argv: str) -> AbstractContextManager[subprocess.Popen[bytes]]:
    return running(home, "audit", "export", "--follow", "--tool", "*", *argv)


@pytest.mark.posix
def test_follow_writes_rows_as_they_come_with_their_outcomes(tmp_path: Path) -> None:
    calls(tmp_path, "echo", 1)
    with following(tmp_path) as export:
        assert json.loads(line_of(export))["outcome"] == "ok"
        calls(tmp_path, "plain", 1)
        found = json.loads(line_of(export))
        assert (found["tool"], found["outcome"]) == ("plain", "ok")
        assert "duration_ms" in found
        export.send_signal(signal.SIGINT)
        assert export.communicate(timeout=DEADLINE_S) == (b"", b"")
        assert export.returncode == 130


def wait_for_lines(file: Path, lines: int) -> None:
    until(lambda: file.exists() and file.read_text("utf-8").count("\n") >= lines, "a row is written")


@pytest.mark.posix
def test_follow_appends_to_a_file_with_one_heading(tmp_path: Path) -> None:
    calls(tmp_path, "echo", 1)
    file = tmp_path / "out.csv"
    for lines in (2, 3):
        with following(tmp_path, "--format", "csv", "-o", str(file)):
            wait_for_lines(file, lines)
    heading, first, second = csv.reader(StringIO(file.read_text("utf-8")))
    assert (heading, first) == (list(MEMBERS), second)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_follow_begins_a_line_of_its_own_after_a_line_that_was_cut(tmp_path: Path) -> None:
    calls(tmp_path, "echo", 1)
    file = tmp_path / "out.jsonl"
    file.write_text('{"id": "a row of a full di', "utf-8")
    with following(tmp_path, "-o", str(file)):
        wait_for_lines(file, 2)
    _, row = file.read_text("utf-8").splitlines()
    assert json.loads(row)["tool"] == "echo"


def test_follow_to_a_file_goes_on_though_nobody_reads_stdout(tmp_path: Path) -> None:
    calls(tmp_path, "echo", 1)
    file = tmp_path / "out.jsonl"
    with following(tmp_path, "-o", str(file)) as export:
        assert export.stdout
        export.stdout.close()
        for lines in (1, 2):
            wait_for_lines(file, lines)
            calls(tmp_path, "plain", 1)


def test_looking_takes_no_lock_that_calls_need(home: Path) -> None:
    path = home / "mcpguard.db"
    with contextlib.ExitStack() as stack:
        log = stack.enter_context(contextlib.closing(CallLog(log_path(path))))
        for lock in (log.turn(), lock_file(beside(path, "-lock"))):
            stack.callback(lock.close)
            assert lock.acquire(1)
            stack.callback(lock.release)
        for argv in (["usage"], ["audit", "stats"], ["audit", "export"]):
            assert "echo" in output(home, *argv)
