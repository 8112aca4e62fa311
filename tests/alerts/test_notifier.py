"""Messages are sent by real processes to real commands and servers."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mcpguard.alerts import Way, deliver
from mcpguard.alerts.deliver import desktop
from mcpguard.alerts.notifier import MOST_DUE, Notifier
from tests.alerts.test_events import DENIED, GONE, WARNED
from tests.alerts.webhook import Webhook, webhook
from tests.end_to_end.host import DEADLINE_S, ROOT, until

ALL = ("denied", "warn", "unavailable")
WRITE = "import sys; sys.stdout = open(sys.argv[1], 'a'); print(sys.stdin.readline(), end='')"


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the process that sends a message find mcpguard, also where only the working folder has it."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


@pytest.fixture
def hook() -> Iterator[Webhook]:
    with webhook() as found:
        yield found


def writing(file: Path) -> Way:
    return Way(ALL, (sys.executable, "-S", "-c", WRITE, str(file)))


def read(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


class Teller(Notifier):
    """A notifier that is tended until everything is sent."""

    def __init__(self, folder: Path, *ways: Way) -> None:
        self.said: list[str] = []
        super().__init__(ways, str(folder / "mcpguard.db"), self.said.append)

    def tell(self, *records: dict[str, Any]) -> None:
        for record in records:
            self.note(record)
        self.close(DEADLINE_S)


def test_each_way_gets_the_events_that_it_is_for(tmp_path: Path, hook: Webhook) -> None:
    file = tmp_path / "got"
    teller = Teller(tmp_path, writing(file), Way(("warn",), webhook=hook.url))
    teller.tell(WARNED, WARNED, DENIED, DENIED | {"user": "bob"}, {"decision": "allowed"})
    got = [(one["event"], one["user"], one["more"]) for one in read(file)]
    assert got == [("warn", "alice", 0), ("denied", "alice", 1), ("denied", "bob", 0)]
    ((path, content_type, message),) = hook.got
    assert (path, content_type) == ("/hooks/s3cret", "application/json")
    assert message == read(file)[0]
    assert message["host"]
    assert teller.said == []


def test_a_webhook_is_not_followed_elsewhere_and_its_secret_is_not_told(tmp_path: Path, hook: Webhook) -> None:
    hook.status, hook.location = 307, hook.url.replace("hooks", "elsewhere")
    teller = Teller(tmp_path, Way(ALL, webhook=hook.url))
    teller.tell(DENIED)
    hook.status = 500
    teller.tell(WARNED | {"user": "bob"})
    assert [path for path, *_ in hook.got] == ["/hooks/s3cret"] * 2
    (line,) = teller.said
    assert line.startswith("a message was not sent: webhook at 127.0.0.1: it redirects to another address")
    assert "s3cret" not in line


@pytest.mark.parametrize(
    ("command", "why"),
    [((sys.executable, "-S", "-c", "raise SystemExit(3)"), "exit status 3"), (("no-such-program",), "No such file")],
)
def test_a_command_that_fails_is_told_in_one_line_once(tmp_path: Path, command: tuple[str, ...], why: str) -> None:
    teller = Teller(tmp_path, Way(ALL, command))
    teller.tell(DENIED, GONE)
    (line,) = teller.said
    assert line.startswith(f"a message was not sent: command {command[0]}: ")
    assert why in line or sys.platform == "win32"


def test_what_was_told_that_cannot_be_remembered_is_reported_and_nothing_is_sent(tmp_path: Path) -> None:
    (tmp_path / "notified.json").mkdir()
    teller = Teller(tmp_path, writing(tmp_path / "got"))
    teller.tell(DENIED, DENIED)
    (line,) = teller.said
    assert "notified.json" in line
    assert read(tmp_path / "got") == []


def test_messages_are_sent_one_after_another(tmp_path: Path, hook: Webhook) -> None:
    hook.answers.clear()
    teller = Teller(tmp_path, Way(ALL, webhook=hook.url), writing(tmp_path / "got"))
    teller.note(DENIED)
    teller.tend()
    until(lambda: len(hook.got) == 1, "the first message")
    teller.tend()
    assert read(tmp_path / "got") == []
    hook.answers.set()
    teller.tell()
    assert len(read(tmp_path / "got")) == 1


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of processes that the end does not wait for
def test_events_wait_while_many_messages_are_due_and_those_left_at_the_end_do_not_count_as_told(
    tmp_path: Path, hook: Webhook
) -> None:
    hook.answers.clear()
    teller = Teller(tmp_path, Way(ALL, webhook=hook.url))
    for user in range(MOST_DUE + 3):
        teller.note(DENIED | {"user": f"{user}"})
    teller.tend()
    teller.close()
    assert "2 events came when 16 messages were due" in teller.said[0]
    hook.answers.set()
    until(lambda: len(hook.got) == MOST_DUE + 1, "the messages that were due")
    Teller(tmp_path, Way(ALL, webhook=hook.url)).tell(*[DENIED | {"user": f"{user}"} for user in range(MOST_DUE + 3)])
    assert len(hook.got) == MOST_DUE + 3


@pytest.mark.posix
@pytest.mark.parametrize("is_awaited", [True, False])
def test_a_command_that_hangs_is_ended_with_its_children_whether_or_not_anyone_waits(tmp_path: Path, is_awaited: bool) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    theirs = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    tuned = "from mcpguard.alerts import deliver; deliver.TIMEOUT_S = 0.2; deliver.main()"
    way = Way(ALL, ("sh", "-c", f"exec 3> {pipe}; sleep 600 & sleep 600"))
    process = subprocess.Popen(
        [sys.executable, "-c", tuned], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    )
    assert process.stdin
    assert process.stdout
    process.stdin.write(json.dumps([way, DENIED | {"event": "denied", "text": ""}]).encode())
    process.stdin.close()
    if is_awaited:
        assert process.stdout.read() == b"command sh: not done in 0.2 s"
    process.stdout.close()
    process.wait(DEADLINE_S)
    os.set_blocking(theirs, True)
    assert os.read(theirs, 1) == b"", "every process that holds the pipe has ended"
    os.close(theirs)


def test_a_name_is_no_markup_for_a_webhook(tmp_path: Path, hook: Webhook) -> None:
    Teller(tmp_path, Way(ALL, webhook=hook.url)).tell(DENIED | {"tool": "<!channel>"})
    (message,) = hook.messages
    assert " tool=&lt;!channel&gt; " in message["text"]
    assert message["tool"] == "<!channel>"


def test_a_text_is_never_a_part_of_a_script_or_of_markup() -> None:
    text, escaped = "<b>'; rm -rf ~ # $(id) `id` \" & calc", "&lt;b&gt;'; rm -rf ~ # $(id) `id` \" &amp; calc"
    for system in ("linux", "darwin", "win32"):
        argv, variables = desktop("-title", text, system)
        assert {word for word in argv if "rm -rf" in word} <= {text, escaped}
        assert (text in variables.values()) == (system == "win32")
    assert desktop("-title", text, "linux")[0][2:4] == ("--", "-title")


@pytest.mark.posix
def test_on_linux_the_desktop_is_told_by_notify_send(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "notify-send"
    program.write_text(f'#!/bin/sh\nprintf "%s|" "$@" > {tmp_path}/argv\n')
    program.chmod(0o700)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(deliver, "desktop", lambda title, text: desktop(title, text, "linux"))
    assert deliver.send(Way(ALL), {"event": "warn", "text": "80 < 100"}) == ""
    assert (tmp_path / "argv").read_text() == "--app-name=mcpguard|--|mcpguard: warn|80 &lt; 100|"
