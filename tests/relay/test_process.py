import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from mcpguard.config import load
from mcpguard.errors import CommandError
from mcpguard.relay.process import ServerProcess, find_program, spawn
from mcpguard.relay.run import run
from tests.end_to_end.host import CAT, PYTHON, WINDOWS, release
from tests.relay.conftest import Start, ended

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")

posix = pytest.mark.posix


def said(child: ServerProcess) -> str:
    """The output of a server, until it closes the output."""
    data = b""
    while more := os.read(child.stdout, 1 << 16):
        data += more
    return data.decode(errors="surrogateescape")


def cannot_be_run(*argv: str) -> CommandError:
    """The error of a program that exists."""
    child = spawn(argv, os.environ)
    with pytest.raises(CommandError) as caught:
        child.confirm()
    release(child.stdin)
    os.close(child.stdout)
    with pytest.raises(ChildProcessError):
        os.waitpid(child.pid, 0)  # no process is left
    assert caught.value.exit_status == 126
    return caught.value


def refusal(argv: Sequence[str], environ: Mapping[str, str]) -> CommandError:
    with pytest.raises(CommandError) as caught:
        find_program(argv[0], environ)
    return caught.value


def script(folder: Path, text: str) -> str:
    file = folder / ("server.bat" if WINDOWS else "server")
    file.write_text(text)
    file.chmod(0o700)
    return str(file)


@pytest.mark.parametrize(
    ("command", "status", "why", "hint"),
    [
        ("no-such-command", 127, "no such command", "give its full path"),
        ("{folder}/none", 127, "no such command", "check the path"),
        ("server --port 1", 127, "no such command", "give each word of the command as an argument of its own"),
        ("", 127, "no such command", "put the command after --: mcpguard run -- npx -y @acme/crm-server"),
        (" ", 127, "no such command", "put the command after --: mcpguard run -- npx -y @acme/crm-server"),
        ("{folder}/text", 126, "it is not executable", ""),
        ("{folder}", 126, "it is a folder", ""),
    ],
)
def test_a_command_that_cannot_be_run_has_the_status_of_a_shell_a_reason_and_a_hint(
    tmp_path: Path, command: str, status: int, why: str, hint: str
) -> None:
    script(tmp_path, "#!/bin/sh\n")
    (tmp_path / "text").touch(0o600)
    error = refusal([command.format(folder=tmp_path)], {"PATH": str(tmp_path)})
    assert (error.exit_status, error.message.rpartition(": ")[2]) == (status, why)
    assert error.hint.startswith(hint)


@posix
def test_a_file_in_the_working_folder_is_run_only_with_a_leading_dot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script(tmp_path, "#!/bin/sh\n")
    monkeypatch.chdir(tmp_path)
    assert find_program("./server", {"PATH": "/nowhere"}) == "./server"
    assert refusal(["server"], {"PATH": "/nowhere"}).exit_status == 127


@posix
def test_the_servers_path_is_searched(tmp_path: Path, start: Start) -> None:
    script(tmp_path, "#!/bin/sh\necho found\n")
    child = start("server", environ={"PATH": str(tmp_path)})
    assert said(child) == "found\n"
    assert ended(child) == 0


@posix
@pytest.mark.parametrize(
    ("text", "what", "hint"),
    [
        ("echo hello\n", "not a program for this system", "#!/bin/sh"),
        ("#!/no/such/interpreter\n", "its interpreter is missing", "its first line"),
    ],
)
def test_a_script_that_the_system_cannot_start_is_126_and_leaves_no_process(
    tmp_path: Path, text: str, what: str, hint: str
) -> None:
    error = cannot_be_run(script(tmp_path, text))
    assert what in error.message
    assert hint in error.hint


@posix
def test_a_program_that_a_limit_of_the_system_keeps_from_running_is_126_and_the_hint_is_the_limits() -> None:
    error = cannot_be_run(*CAT, "x" * 10_000_000)
    assert error.message == f"cannot run {CAT[0]}: Argument list too long"
    assert "ulimit -a" in error.hint


def test_the_server_gets_its_arguments_unchanged_without_a_shell(start: Start) -> None:
    words = ["a b", "", "$HOME", "%PATH%", 'a"b\\', "*", "ü" if WINDOWS else "ü\udcff", "-c"]
    program = "import json, sys; print(json.dumps(sys.argv[1:]))"
    assert json.loads(said(start(*PYTHON, program, *words))) == words


@posix
def test_the_server_inherits_neither_mcpguards_ends_of_its_pipes_nor_its_files(start: Start, tmp_path: Path) -> None:
    given = {fd for fd in range(3, 256) if Path(f"/dev/fd/{fd}").exists() and os.get_inheritable(fd)}
    with (tmp_path / "ours").open("w"):
        program = "import os; print([fd for fd in range(3, 256) if os.path.exists(f'/dev/fd/{fd}')])"
        found = set(json.loads(said(start(sys.executable, "-S", "-c", program))))
    assert found <= given


@posix
def test_a_signal_to_a_server_that_has_exited_does_nothing(start: Start) -> None:
    child = start(*PYTHON, "pass")
    ended(child)
    child.signal(signal.SIGTERM)


@posix
def test_the_server_starts_with_the_default_signal_handlers(start: Start) -> None:
    command = "kill -PIPE $$; echo still here"
    assert said(start("sh", "-c", command)) == ""


@posix
def test_a_server_whose_status_is_lost_counts_as_failed(start: Start) -> None:
    child = start(*PYTHON, "pass")
    os.waitpid(child.pid, 0)
    assert child.poll() == 1


@posix
def test_the_server_is_our_child_in_a_process_group_of_its_own(start: Start) -> None:
    child = start(*PYTHON, "import os; print(os.getpgrp() == os.getpid(), os.getppid())")
    assert said(child) == f"True {os.getpid()}\n"


@posix
def test_the_server_gets_exactly_the_given_environment(start: Start) -> None:
    child = start("/usr/bin/env", environ={"ONE": "1", "TWO": "ü\udcff"})
    assert sorted(said(child).splitlines()) == ["ONE=1", "TWO=ü\udcff"]


def dies_with_its_parent(begin: str, spawn: str, child: str = "") -> None:
    """Kill a process as soon as it has started a server, which heeds no signal; wait until nobody is left."""
    read, write = os.pipe()
    server = f"import os, signal; signal.signal(15, signal.SIG_IGN); {child}os.write(1, b'u'); signal.pause()"
    parent = (
        f"import os, signal, sys; {begin}; from mcpguard.relay.process import spawn;"
        f"child = spawn([sys.executable, '-S', '-c', {server!r}], os.environ); {spawn}; os.write(1, b'up'); signal.pause()"
    )
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen([sys.executable, "-c", parent], pass_fds=(write,), env=env, stdout=subprocess.PIPE) as process:
        os.close(write)
        assert process.stdout
        assert os.read(process.stdout.fileno(), 2) == b"up"
        process.kill()
    assert os.read(read, 1) == b""  # nobody holds the other end any more
    os.close(read)


@pytest.mark.skipif(sys.platform != "linux", reason="a parent-death signal is Linux's")
def test_the_server_dies_with_mcpguard_though_python_lacks_the_fast_way_to_call_the_system() -> None:
    dies_with_its_parent("import _ctypes; del _ctypes.call_function", "child.confirm(); os.read(child.stdout, 1)")


@pytest.fixture
def _darwin(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the branches of macOS, which has no `waitid` and no parent-death signal."""
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.delattr(os, "waitid", raising=False)


@posix
@pytest.mark.usefixtures("_darwin")
@pytest.mark.parametrize(("does", "status"), [("os._exit(7)", 7), ("os.kill(os.getpid(), 15)", 128 + 15)])
def test_the_status_of_a_server_is_known_on_macos(start: Start, does: str, status: int) -> None:
    child = start(*PYTHON, f"import os; os.read(0, 1); {does}")
    assert child.poll() is None
    child.stdin.close()
    assert (ended(child), child.was_killed) == (status, status > 128)
    child.signal(signal.SIGTERM)


@posix
def test_on_macos_a_server_does_not_outlive_an_mcpguard_that_is_killed_before_it_has_loaded_anything() -> None:
    dies_with_its_parent("sys.platform = 'darwin'", "pass", child="os.fork(); ")


@posix
@pytest.mark.usefixtures("_darwin")
def test_on_macos_nothing_watches_a_program_that_cannot_be_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watchdogs: list[int] = []
    start = os.posix_spawn

    def posix_spawn(*arguments: Any, **options: Any) -> int:
        watchdogs.append(start(*arguments, **options))
        return watchdogs[-1]

    monkeypatch.setattr(os, "posix_spawn", posix_spawn)
    cannot_be_run(script(tmp_path, "no program\n"))
    with pytest.raises(ChildProcessError):
        os.waitpid(watchdogs[0], os.WNOHANG)


@contextlib.contextmanager
def no_descriptor_left(below: int) -> Iterator[None]:
    """Leave the process no free descriptor."""
    import resource

    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (below, limits[1]))
    taken: list[int] = []
    try:
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.dup(0))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for fd in taken:
            os.close(fd)


@posix
def test_the_servers_input_can_be_ended_without_a_free_descriptor(start: Start) -> None:
    child = start(*CAT)
    with no_descriptor_left(child.stdin.fd + 1):
        child.stdin.close()
    assert ended(child) == 0


@posix
def test_a_session_goes_on_without_a_watchdog_if_no_descriptor_is_left(start: Start) -> None:
    child = start(*CAT)
    with no_descriptor_left(child.stdin.fd + 1):
        child.watch()
    child.stdin.close()
    assert ended(child) == 0
    child.reap()


@posix
@pytest.mark.parametrize("begins", [spawn, run], ids=["for the server", "before the server starts"])
def test_a_lack_of_descriptors_is_an_error_of_one_line(tmp_path: Path, begins: Callable[..., object]) -> None:
    arguments = (CAT, load({"MCPGUARD_HOME": str(tmp_path)})) if begins is run else (CAT, os.environ)
    with no_descriptor_left(3), pytest.raises(CommandError) as caught:
        begins(*arguments, **({"server": None} if begins is run else {}))
    assert (caught.value.message, caught.value.exit_status) == (f"cannot start {CAT[0]}: Too many open files", 126)
    assert "ulimit -a" in caught.value.hint
