import contextlib
import csv
import errno
import json
import os
import select
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mcpguard.cli import commands
from mcpguard.config import Settings
from mcpguard.locks import lock_file
from mcpguard.reading.telemetry import HEADERS, SERVICE
from mcpguard.session.audit import MEMBERS
from mcpguard.stores.sqlite.call_log import CallLog, beside, log_path
from tests.build import raising
from tests.cli.command import calls, complaint, mcpguard, objects, output, process, running
from tests.end_to_end.host import DEADLINE_S, until
from tests.reading.receiver import Receiver, receiving, values


def lines_of(home: Path, *argv: str) -> list[str]:
    return output(home, "audit", "export", *argv).splitlines()


def test_json_lines_are_the_records(used: Path) -> None:
    records = mcpguard(used, "audit", "tail", "-n", "100", "--json").stdout.splitlines()
    assert lines_of(used) == records
    assert lines_of(used, "--denied") == [one for one in records if json.loads(one)["decision"] in {"rate_limited", "denied"}]
    assert lines_of(used, "-o", "-", "--user", "nobody") == []


def test_the_format_is_the_one_that_is_chosen(used: Path) -> None:
    heading, *rows = lines_of(used, "--format", "csv", "--tool", "*")
    assert (heading, len(rows)) == (",".join(MEMBERS), 4)
    events = [(one["class_uid"], one["action"]) for one in objects(used, "audit", "export", "--format", "ocsf")]
    assert events == [(6003, "Allowed"), (6003, "Denied"), (6003, "Denied"), (6003, "Observed")]


def test_a_file_is_private_and_not_replaced(used: Path, tmp_path: Path) -> None:
    file = tmp_path / "out.jsonl"
    assert mcpguard(used, "audit", "export", "-o", str(file)).stderr == f"{len(lines_of(used))} rows written\n"
    assert file.read_text("utf-8").splitlines() == lines_of(used)
    assert sys.platform == "win32" or stat.S_IMODE(file.stat().st_mode) == 0o600  # Windows has access lists
    assert [path.name for path in tmp_path.iterdir()] == ["out.jsonl"]
    file.write_text("mine", "utf-8")
    assert "exists, and is not replaced" in complaint(used, "audit", "export", "-o", str(file))
    assert file.read_text("utf-8") == "mine"
    assert mcpguard(used, "audit", "export", "-o", "/dev/null").returncode == 0


def test_a_file_that_appears_meanwhile_is_not_replaced(used: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, read_store = tmp_path / "out", Settings.read_store

    def read_late(settings: Settings) -> Any:
        file.write_text("theirs", "utf-8")
        return read_store(settings)

    monkeypatch.setattr(Settings, "read_store", read_late)
    said = complaint(used, "audit", "export", "-o", str(file))
    assert said.startswith(f"mcpguard: {file} exists by now, and is not replaced\n")
    assert file.read_text("utf-8") == "theirs"
    assert list(tmp_path.iterdir()) == [file]


FULL = pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
HINT = "hint: check that its folder is writable and the disk is not full\n"


@FULL
@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], f"cannot write the output: No space left on device\n{HINT}"),
        (["-o", "/dev/full"], f"-o: /dev/full cannot be written: No space left on device\n{HINT}"),
    ],
)
def test_a_full_disk_is_one_line_and_a_hint(used: Path, argv: list[str], message: str) -> None:
    done = process(used, "audit", "export", *argv, under=("sh", "-c", 'exec "$@" >/dev/full', "sh"))
    assert (done.returncode, done.stderr) == (1, f"mcpguard: {message}")


@pytest.mark.parametrize("more", [(), ("--follow",)])
def test_where_no_file_can_be_is_a_usage_error_and_leaves_none(used: Path, tmp_path: Path, more: tuple[str, ...]) -> None:
    missing = tmp_path / "missing"
    said = complaint(used, "audit", "export", *more, "-o", str(missing / "out"))
    assert said == f"mcpguard: -o: there is no folder {missing}\nhint: create it, or name another file\n"
    said = complaint(used, "audit", "export", *more, "-o", str(tmp_path))
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
def test_all_rows_are_written_whether_or_not_stderr_takes_anything(used: Path, tmp_path: Path, stderr: str) -> None:
    file, shell = tmp_path / "rows.jsonl", ("sh", "-c", f'exec "$@" 2>{stderr}', "sh")
    assert process(used, "audit", "export", under=shell).stdout.splitlines() == lines_of(used)
    process(used, "audit", "export", "-o", str(file), under=shell)
    assert file.read_text("utf-8").splitlines() == lines_of(used)


def test_rows_are_written_where_a_process_may_not_lower_its_priority(used: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse = raising(PermissionError(errno.EPERM, os.strerror(errno.EPERM)))
    monkeypatch.setattr(commands, "os", SimpleNamespace(nice=refuse))
    assert len(lines_of(used)) > 0


def following(home: Path, *argv: str) -> AbstractContextManager[subprocess.Popen[bytes]]:
    return running(home, "audit", "export", "--follow", "--tool", "*", *argv)


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


def test_follow_to_a_file_begins_a_line_after_one_that_was_cut_and_goes_on_though_nobody_reads_stdout(tmp_path: Path) -> None:
    calls(tmp_path, "echo", 1)
    file = tmp_path / "out.jsonl"
    file.write_text('{"id": "a row of a full di', "utf-8")
    with following(tmp_path, "-o", str(file)) as export:
        assert export.stdout
        export.stdout.close()
        wait_for_lines(file, 2)
        calls(tmp_path, "plain", 1)
        wait_for_lines(file, 3)
    _, *rows = file.read_text("utf-8").splitlines()
    assert [(json.loads(row)["tool"], json.loads(row)["outcome"]) for row in rows] == [("echo", "ok"), ("plain", "ok")]


def test_looking_takes_no_lock_that_calls_need(used: Path) -> None:
    path = used / "mcpguard.db"
    with contextlib.ExitStack() as stack:
        log = stack.enter_context(contextlib.closing(CallLog(log_path(path))))
        for lock in (log.turn(), lock_file(beside(path, "-lock"))):
            stack.callback(lock.close)
            assert lock.acquire(1)
            stack.callback(lock.release)
        for argv in (["usage"], ["audit", "stats"], ["audit", "export"]):
            assert "echo" in output(used, *argv)


# To a collector


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


def decisions(receiver: Receiver) -> list[str]:
    return [values(span.attributes)["mcpguard.decision"] for span in receiver.spans]


def test_the_calls_of_a_real_server_reach_a_collector(home: Path, receiver: Receiver) -> None:
    env = {HEADERS: "api-key=hunter2", SERVICE: "fleet"}
    done = process(home, "audit", "export", "--otlp", receiver.url, **env)  # type: ignore[arg-type]
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "4 rows sent\n")
    assert decisions(receiver) == ["allowed", "rate_limited", "denied", "would_deny"]
    assert receiver.counts("mcpguard.decision") == {(one,): 1 for one in decisions(receiver)}
    assert receiver.headers[0]["api-key"] == "hunter2"
    assert receiver.resources[0]["service.name"] == "fleet"


def test_filters_select_the_rows_that_are_sent(home: Path, receiver: Receiver) -> None:
    assert mcpguard(home, "audit", "export", "--otlp", receiver.url, "--denied").returncode == 0
    assert decisions(receiver) == ["rate_limited", "denied"]
