import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from mcpguard.relay.bookkeeper import Rhythm
from mcpguard.relay.supervisor import ShutdownTimeouts
from mcpguard.relay.upstream import LoopTimeouts
from tests.windows import processes

from .host import (
    CAT,
    DEADLINE_S,
    KILLED_STATUS,
    PYTHON,
    WINDOWS,
    Host,
    audit,
    budget,
    call,
    environment,
    lines,
    program,
    request,
    rule,
    script,
    serving,
    until,
)

pytestmark = pytest.mark.waits

GONE = -32000
SHUTDOWN: Final = "mcpguard.relay.supervisor.SHUTDOWN_TIMEOUTS"
NO_GRACE: Final = {SHUTDOWN: ShutdownTimeouts(after_eof_s=0.1, after_term_s=0.1)}
"""For tests of a server that may take its time: as soon as mcpguard ended it, the test would fail."""
ENDED_STATUS: Final = 1 if WINDOWS else -signal.SIGTERM
"""The exit status after mcpguard has ended a server that heeds the signal for that, if there are signals."""
posix = pytest.mark.posix
only_linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells of these processes")
hears_late = pytest.mark.skipif(
    WINDOWS, reason="Windows does not tell mcpguard whether somebody reads after the end of its input"
)
SHORT_MS: Final = 4000
"""A budget for the store in tests that wait for the end of it, which is still long for a busy machine."""


@pytest.mark.parametrize(
    ("tool", "arguments", "told", "status"),
    [
        ("leave", {"status": 0}, "status 0", 0),
        ("leave", {"status": 7}, "status 7", 7),
        pytest.param("die", {"signal": "SIGSEGV"}, "status 139 (SIGSEGV)", -11, marks=posix),
        pytest.param("die", {"signal": "SIGTERM"}, "status 143 (SIGTERM)", -15, marks=posix),
    ],
)
def test_requests_in_flight_are_answered_when_the_server_is_gone(
    tmp_path: Path, tool: str, arguments: dict[str, object], told: str, status: int
) -> None:
    with Host(tmp_path, *script("obedient")) as host:
        host.send(call(1, "hang"), call("two", "hang"), call(3, tool, arguments))
        for request_id in (1, "two", 3):
            error = host.answer(request_id)["error"]
            assert (error["code"], error["message"]) == (GONE, f"server exited with {told}")
        assert host.ended() == (b"", status)
        assert f"server exited with {told}\n" in host.err
        assert "Traceback" not in host.err
    assert [row["outcome"] for row in audit(tmp_path)] == ["no_answer"] * 3


@pytest.mark.parametrize(
    ("lives_on", "status"), [("sys.stdin.read()", 0), ("time.sleep(1000)", ENDED_STATUS)], ids=["listens", "does not listen"]
)
def test_a_server_that_closes_its_output_and_lives_on_is_ended_and_its_calls_are_answered(
    tmp_path: Path, lives_on: str, status: int
) -> None:
    with Host(tmp_path, *PYTHON, f"import os, sys, time; sys.stdin.readline(); os.close(1); {lives_on}") as host:
        host.send(call(1, "x"))
        assert host.answer(1)["error"]["code"] == GONE
        assert host.ended() == (b"", status)
        assert host.nobody_is_left()


@posix
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP"])
def test_a_signal_to_the_guard_ends_the_server_and_is_the_status_and_nothing_is_answered(tmp_path: Path, name: str) -> None:
    number = signal.Signals[name]
    with Host(tmp_path, *script("obedient")) as host:
        host.send(call(1, "hang"))
        host.notification("notifications/hanging")
        host.kill(number)
        assert host.ended() == (b"", -number)
        assert host.nobody_is_left()
        assert "Traceback" not in host.err
    assert [row["outcome"] for row in audit(tmp_path)] == ["no_answer"]


@posix
def test_a_signal_that_comes_before_the_guard_is_ready_ends_it_too(tmp_path: Path) -> None:
    with Host(tmp_path, "sh", "-c", "kill -TERM $PPID; cat >/dev/null; sleep 1000") as host:
        assert host.ended() == (b"", -signal.SIGTERM)
        assert host.nobody_is_left()


@posix
def test_a_signal_reaches_a_server_that_ends_in_its_own_way(tmp_path: Path) -> None:
    command = "trap 'echo bye; exit 5' TERM; echo ready; while :; do read line || :; done"
    with Host(tmp_path, "sh", "-c", command) as host:
        assert host.line() == b"ready"
        host.kill(signal.SIGTERM)
        assert host.line() == b"bye"
        assert host.wait() == 5


LAUNCHER = """
import os, subprocess, sys
subprocess.Popen([sys.executable, "-S", *sys.argv[1:]], stdin=0, stdout=1, close_fds=False)
os._exit(0)
"""


def launched(name: str) -> list[str]:
    """The command of a launcher that exits with 0 while its child serves on its pipes."""
    return [*PYTHON, LAUNCHER, *script(name)[2:]]


LEFT = "setsid sleep 1000 & (setsid sleep 1000 &); echo ready; exec sleep 1000"
"""A server of which two processes have left its group."""

ENDS: Final = [pytest.param(signal.SIGTERM, marks=posix), None]
"""How a session ends: by a signal, or since its client has gone."""


@pytest.mark.parametrize("number", ENDS)
@pytest.mark.parametrize(
    ("command", "status"),
    [
        pytest.param(script("stubborn"), KILLED_STATUS, id="heeds nothing"),
        pytest.param(launched("stubborn"), 0, id="a launcher's child that heeds nothing"),
        pytest.param(["sh", "-c", LEFT], -signal.SIGTERM, id="has left its group", marks=[posix, only_linux]),
    ],
)
def test_a_signal_or_the_end_of_the_client_ends_a_server_and_all_that_it_started(
    tmp_path: Path, command: list[str], status: int, number: signal.Signals | None
) -> None:
    with Host(tmp_path, *command) as host:
        assert host.line()
        host.is_up()
        if number:
            host.kill(number)
        assert (host.wait() if number else host.leave()) == status
        assert host.nobody_is_left()


@pytest.mark.parametrize("number", ENDS)
def test_a_client_that_does_not_read_does_not_keep_the_guard_from_ending(tmp_path: Path, number: signal.Signals | None) -> None:
    budget(tmp_path, SHORT_MS)
    with Host(tmp_path, *script("obedient")) as host:
        host.send(call(1, "big", {"mib": 50}))
        host.read(10)
        if number:
            host.kill(number)
            host.wait()
        else:
            host.leave()
        assert host.nobody_is_left()


HELPER = """
import os, subprocess, sys
sleeps = [sys.executable, "-S", "-c", "import time; time.sleep(1000)"]
os.write(1, b"%d\\n" % subprocess.Popen(sleeps, stdin=0, stdout=1, close_fds=False).pid)
sys.stdin.readline()
"""
"""A server with a helper that has its pipes; the server says which, and waits for a line or its input's end."""


@pytest.mark.parametrize("client_leaves", [True, False])
def test_what_a_server_leaves_running_when_it_exits_is_left_alone(tmp_path: Path, *, client_leaves: bool) -> None:
    with Host(tmp_path, *PYTHON, HELPER + "os._exit(4)") as host:
        helper = int(host.line())
        if client_leaves:
            assert host.end() == 4
            assert "server exited" not in host.err
        else:
            host.send(call(1, "leave"))
            assert host.answer(1)["error"]["message"] == "server exited with status 4"
            assert host.wait() == 4
        assert processes.runs(helper)
        processes.kill([helper])
        assert host.nobody_is_left()


@posix
def test_what_a_server_leaves_running_when_a_signal_kills_it_is_killed(tmp_path: Path) -> None:
    with Host(tmp_path, *PYTHON, HELPER + "os.kill(os.getpid(), 11)") as host:
        host.line()
        host.send(call(1, "die"))
        assert host.answer(1)["error"]["message"] == "server exited with status 139 (SIGSEGV)"
        assert host.wait() == -signal.SIGSEGV
        assert host.nobody_is_left()


def test_a_launchers_child_is_served_and_limited_until_its_client_leaves(tmp_path: Path) -> None:
    with Host(tmp_path, *launched("obedient"), rules=rule("3/1h", tool="search")) as host:
        for number in range(3):
            assert "result" in host.call(number, "search")
        assert host.call(3, "search")["error"]["code"] == 429
        host.stdin.close()
        assert host.answer("last")["result"]["content"][0]["text"] == "words"
        assert host.ended() == (b"", 0)
        assert host.nobody_is_left()


@pytest.mark.parametrize("whole_group", [False, pytest.param(True, marks=posix)])
def test_the_death_of_the_guard_is_the_death_of_all_that_a_server_started_and_that_heeds_nothing(
    tmp_path: Path, *, whole_group: bool
) -> None:
    with Host(tmp_path, *script("stubborn"), own_group=whole_group) as host:
        host.notification("notifications/ready")
        host.is_up()
        if whole_group:
            os.killpg(host.process.pid, signal.SIGKILL)
        else:
            host.kill()
        assert host.nobody_is_left()


@posix
@only_linux
@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
def test_a_signal_to_the_guards_watchdog_does_not_let_a_killed_guard_leave_anything_behind(tmp_path: Path, name: str) -> None:
    number = signal.Signals[name]
    with Host(tmp_path, *script("stubborn")) as host:
        host.notification("notifications/ready")
        host.is_up()
        children = Path(f"/proc/{host.process.pid}/task/{host.process.pid}/children").read_text().split()
        (watchdog,) = (int(pid) for pid in children if b"mcpguard-watchdog" in Path(f"/proc/{pid}/cmdline").read_bytes())
        ignored = re.compile(r"^SigIgn:\t([0-9a-f]+)$", re.MULTILINE)

        def heeds_nothing() -> bool:
            found = ignored.search(Path(f"/proc/{watchdog}/status").read_text())
            return bool(found and int(found[1], 16) >> (number - 1) & 1)

        until(heeds_nothing, "the watchdog is up")
        os.kill(watchdog, number)
        host.kill()
        assert host.nobody_is_left()


@hears_late
def test_a_client_that_ends_its_input_and_reads_late_gets_everything(tmp_path: Path) -> None:
    soon = {SHUTDOWN: NO_GRACE[SHUTDOWN]._replace(pause_s=0.1, drain_s=0.1)}
    writes = "import os, sys; sys.stdin.read(); sys.stdout.write('x' * 150_000 + chr(10))"
    calls = [call(number, "closed", {}) for number in range(1000)]
    with Host(tmp_path, *PYTHON, writes, rules=rule("deny", tool="closed"), tuned=soon) as host:
        with host.sending(lines([*calls, request("last", "ping")])):
            pass
        host.stdin.close()
        with pytest.raises(subprocess.TimeoutExpired):
            host.process.wait(1.5)
        answers = host.rest().splitlines()
        assert len(answers) == len(calls) + 1
        assert b"x" * 150_000 in answers
        assert host.wait() == 0


ADOPTS: Final = """
import ctypes, os, subprocess, sys
PR_SET_CHILD_SUBREAPER = 36
ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
subprocess.run(sys.argv[1:], stdin=subprocess.DEVNULL, check=True)
try:
    os.waitpid(-1, os.WNOHANG)
except ChildProcessError:
    sys.exit(0)
sys.exit("something is left")
"""
"""Stands for process 1 of a container that adopts what mcpguard leaves, and collects no ended processes."""


@posix
@only_linux
def test_a_session_leaves_no_ended_process_to_be_collected(tmp_path: Path) -> None:
    adopts = [sys.executable, "-c", ADOPTS, *program("run", "--quiet", "--", *CAT)]
    assert subprocess.run(adopts, env=environment(tmp_path), timeout=DEADLINE_S, check=False).returncode == 0


def test_a_server_that_dies_takes_no_call_with_it_that_nobody_answers(tmp_path: Path) -> None:
    dies = "import os, sys; sys.stdin.readline(); os._exit(7)"
    with Host(tmp_path, *PYTHON, dies, rules=rule("9000/1d", tool="*")) as host:
        with host.sending(lines([call(number, "t") for number in range(6000)]), in_vain=True):
            answers = host.rest()
        assert host.wait() == 7
        assert "store unavailable" not in host.err
    assert answers.endswith(b"\n")
    told = {message["id"] for message in map(json.loads, answers.splitlines())}
    rows = [row for row in audit(tmp_path) if row["decision"] == "allowed"]
    assert {row["outcome"] for row in rows} == {"no_answer"}
    assert {int(row["request_id"]) for row in rows} <= told


def test_denials_are_answered_though_the_server_has_died_since_they_were_judged(tmp_path: Path) -> None:
    dies = "import os, sys; sys.stdin.read(1); sys.stdin.buffer.peek(); os._exit(3)"
    for turn in range(3):
        home = tmp_path / str(turn)
        rules = rule("1/1h", tool="small") + rule("1000/1h", tool="big")
        calls = [call(0, "big", {"text": "x" * 60_000}), call(1, "big", {"text": "x" * 20_000})]
        with Host(home, *PYTHON, dies, rules=rules) as host:
            host.send(lines([*calls, *(call(number, "small") for number in range(2, 52))]))
            answered = {json.loads(line)["id"] for line in host.rest().splitlines()}
            assert host.wait() == 3
        decided = {int(row["request_id"]) for row in audit(home) if "repeats" not in row}
        assert decided <= answered


def test_a_client_may_write_everything_end_its_input_and_only_then_read(tmp_path: Path) -> None:
    command, sent = program("run", "--", *script("obedient")), lines([call(number, "search") for number in range(20)])
    done = subprocess.run(command, input=sent, env=environment(tmp_path), capture_output=True, check=True)
    assert [json.loads(line)["id"] for line in done.stdout.splitlines()] == [*range(20), "last"]


@hears_late
def test_what_a_server_reads_late_is_not_lost_when_the_clients_input_ends_first(tmp_path: Path) -> None:
    late = "import sys, time; sys.stdin.readline(); time.sleep(1.0); sys.stdout.write(str(len(sys.stdin.readlines())))"
    tuned = NO_GRACE | {"mcpguard.relay.upstream.LOOP_TIMEOUTS": LoopTimeouts(stuck_s=0.1)}
    with Host(tmp_path, *PYTHON, late, tuned=tuned) as host:
        host.is_up()
        with host.sending(lines([request(number, "ping", {"text": "x" * 1000}) for number in range(170)])):
            pass
        host.stdin.close()
        assert host.ended() == (b"169", 0)


@hears_late
def test_a_server_that_answers_long_after_the_end_of_the_input_is_heard(tmp_path: Path) -> None:
    late = "import sys, time; sys.stdin.read(); time.sleep(1.0); print('late'); sys.exit(5)"
    with Host(tmp_path, *PYTHON, late, tuned=NO_GRACE) as host:
        host.is_up()
        host.stdin.close()
        assert host.ended() == (b"late\n", 5)


@posix
@pytest.mark.parametrize("name", ["SIGQUIT", "SIGUSR2", "SIGWINCH"])
def test_a_signal_that_does_not_tell_to_end_reaches_the_server_and_ends_nothing(tmp_path: Path, name: str) -> None:
    number = signal.Signals[name]
    tells = f"import os, signal; signal.signal({int(number)}, lambda *_: os.write(1, b'got\\n')); os.write(1, b'up\\n')"
    with serving(tmp_path, *PYTHON, f"{tells}\nwhile os.read(0, 100): os.write(1, b'read\\n')") as host:
        assert host.line() == b"up"
        host.kill(number)
        assert host.line() == b"got"
        host.send(request(1, "ping"))
        assert host.line() == b"read"


@posix
def test_a_signal_for_one_process_leaves_the_servers_helpers_running(tmp_path: Path) -> None:
    number = signal.SIGUSR1
    server = f"""
import os, signal, subprocess
helper = subprocess.Popen(["sleep", "1000"])  # has no handler: the signal would end it
signal.signal({int(number)}, lambda *_: os.write(1, f"{{helper.poll()}}\\n".encode()))
os.write(1, b"up\\n")
while os.read(0, 100):
    os.write(1, f"{{helper.poll()}}\\n".encode())
helper.kill()
"""
    with serving(tmp_path, *PYTHON, server) as host:
        assert host.line() == b"up"
        host.kill(number)
        assert host.line() == b"None"
        host.send(request(1, "ping"))
        assert host.line() == b"None"


@posix
@pytest.mark.parametrize("name", ["SIGABRT", "SIGUSR1"])
def test_the_signal_that_kills_the_server_kills_the_guard_after_the_last_answer_without_a_core_dump(
    tmp_path: Path, name: str
) -> None:
    number = signal.Signals[name]
    with Host(tmp_path, *script("obedient")) as host:
        host.send(call(1, "hang"), call(2, "die", {"signal": name}))
        assert [host.answer(request_id)["error"]["code"] for request_id in (1, 2)] == [GONE, GONE]
        assert host.rest() == b""
        _, status = os.waitpid(host.process.pid, 0)
        host.process.returncode = os.waitstatus_to_exitcode(status)
        assert os.WTERMSIG(status) == number
        assert not os.WCOREDUMP(status)
    assert [row["outcome"] for row in audit(tmp_path)] == ["no_answer"] * 2


def test_the_store_is_open_before_a_call_comes(tmp_path: Path) -> None:
    with serving(tmp_path, *CAT, tuned={"mcpguard.relay.bookkeeper.RHYTHM": Rhythm(tick_s=3600.0)}) as host:
        until(lambda: bool(host.notes()), "the policy's row is in the store", 0.1)


def test_the_first_call_imports_nothing(tmp_path: Path) -> None:
    rules, env = rule("100/1h", tool="*"), {"PYTHONPROFILEIMPORTTIME": "1"}
    with serving(tmp_path, *CAT, rules=rules, options=("--server", "crm"), env=env) as host:
        until(lambda: "mcpguard.documents.toml" in host.err and bool(host.notes()), "everything is in place", 0.1)
        imported = host.err
        host.send(call(1, "search"))
        assert host.message() == call(1, "search")
        assert host.err == imported
