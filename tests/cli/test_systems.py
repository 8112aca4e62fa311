"""What the command line does on Windows and macOS, forced on every system."""

import errno
import io
import os
import select
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from mcpguard import cli
from mcpguard.cli import present
from mcpguard.errors import UsageError


@pytest.mark.skipif(not hasattr(os, "eventfd"), reason="needs a descriptor that refuses a write as an invalid argument")
def test_an_invalid_argument_means_that_the_reader_of_a_pipe_has_left() -> None:
    fd = os.eventfd(0)
    with cli._Output(fd, "w") as output, pytest.raises(BrokenPipeError) as caught:
        output.write(b"short")  # it takes eight bytes
    assert caught.value.errno == errno.EPIPE


@pytest.mark.parametrize(("variable", "expected"), [("", "客".encode()), ("utf-16-le", b"?")])
def test_redirected_output_is_utf_8_unless_the_user_names_another_encoding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str, expected: bytes
) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", variable)
    with (tmp_path / "out").open("w", encoding="cp1252", errors="replace") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        cli.prepare_output()
        sys.stdout.write("客")
        sys.stdout.flush()
    assert (tmp_path / "out").read_bytes() == expected


def test_what_is_no_file_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    for stream in (None, io.StringIO(), io.TextIOWrapper(io.BytesIO())):
        monkeypatch.setattr(sys, "stdout", stream)
        monkeypatch.setattr(sys, "stderr", stream)
        cli.prepare_output()
        assert sys.stdout is stream


@pytest.mark.parametrize("argument", ["'*'", "'Claude"])
def test_single_quotes_which_cmd_exe_leaves_in_an_argument_are_refused(argument: str) -> None:
    with pytest.raises(UsageError, match="single quotes are part of the text") as caught:
        cli.refuse_quotes(["policy", "set", "--user", argument])
    assert caught.value.hint == 'use double quotes, such as "*"'
    cli.refuse_quotes(["policy", "set", "--user", "o'neill"])


@pytest.mark.skipif(sys.platform != "win32", reason="Windows tells whether a pipe has a reader")
def test_a_pipe_without_a_reader_is_known() -> None:
    reader, writer = os.pipe()
    assert not present.is_unread(writer)
    os.close(reader)
    assert present.is_unread(writer)
    os.close(writer)


@pytest.mark.posix
def test_a_reader_that_leaves_is_seen_where_poll_tells_only_what_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    poll = select.poll

    def darwins() -> SimpleNamespace:
        found = poll()

        def register(fd: int, events: int) -> None:
            if events:
                found.register(fd, events)

        return SimpleNamespace(poll=found.poll, register=register)

    monkeypatch.setattr(select, "poll", darwins)
    reader, writer = os.pipe()
    with open(writer, "w") as stdout:  # noqa: PTH123 - a descriptor
        monkeypatch.setattr(sys, "stdout", stdout)
        assert not present.reader_leaves(within_s=0)
        os.close(reader)
        assert present.reader_leaves(within_s=0)
