"""Arguments of batch files, as they arrive at the program that the batch file starts."""

import json
import os
import random
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.host import SERVERS, Host

windows: Any = pytest.importorskip(
    "mcpguard.relay.process_windows", reason="only Windows has batch files", exc_type=ImportError
)

HARD = [
    *("", "two words", " ", "\t", "it's", "é✓", "a;b,c=d", "-y", "--name=value"),
    *("pg://u:p@h/db?a=1&echo=INJECTED", "x&echo INJECTED>pwned.txt", "|echo>pwned.txt", '"&echo>pwned.txt&"'),
    *("50%PATH%", "%", "%%", "100%", "%cd%", "%1", "%*", "%~dp0", "!PATH!", "!"),
    *("a|b", "^caret", "a^^b", "^", "<in>", "1>pwned.txt", "(paren)", ")", "*", "?"),
    *('q"uo&te', 'two "quoted words"', '\\"', '"', '""', '"a', 'a"', 'a""b', '\\\\"x'),
    *("C:\\dir\\", "two words\\", "\\", "\\\\", "\\\\server\\share\\"),
]


def random_arguments(number: int) -> list[str]:
    rng = random.Random(number)  # noqa: S311 - no secret
    return ["".join(rng.choices("abPTH \\\"%&|<>^()!,;=*?'`~@$#+-[]{}/:.é\t1", k=rng.randrange(1, 14))) for _ in range(number)]


@pytest.fixture
def shim(tmp_path: Path) -> Path:
    """A batch file like `npx.cmd`. What arrives is in `arguments` beside it."""
    folder = tmp_path / "a folder"
    folder.mkdir()
    show = f"import json, runpy, sys\nopen({str(folder / 'arguments')!r}, 'w').write(json.dumps(sys.argv[1:]))\n"
    serve = f"del sys.argv[1:]\nrunpy.run_path({str(SERVERS / 'obedient.py')!r})\n"
    (folder / "show.py").write_text(show + serve)
    (folder / "shim").write_text("#!/bin/sh\nexit 3\n")
    shim = folder / "shim.cmd"
    shim.write_bytes(f'@ECHO off\r\n"{sys.executable}" "%~dp0show.py" %*\r\n'.encode())
    return shim


def arrived(shim: Path, line: str) -> list[str]:
    cmd = rf"{os.environ['SYSTEMROOT']}\System32\cmd.exe"
    subprocess.run(line, executable=cmd, cwd=shim.parent, stdin=subprocess.DEVNULL, check=True)
    found: list[str] = json.loads((shim.parent / "arguments").read_text())
    return found


def cross_spawn(program: str, arguments: Sequence[str]) -> str:
    """What cross-spawn 7, by which most clients start a server today, makes of a command (lib/util/escape.js)."""

    def escaped(text: str) -> str:
        return re.sub(r'([()\][%!^"`<>&|;, *?])', r"^\1", text)

    def argument(text: str) -> str:
        text = re.sub(r'(\\*)"', r'\1\1\\"', text)
        return escaped('"' + re.sub(r"(\\*)$", r"\1\1", text, count=1) + '"')

    return f'cmd.exe /d /s /c "{" ".join([escaped(program), *map(argument, arguments)])}"'


@pytest.mark.parametrize("arguments", [HARD, *(random_arguments(400)[at : at + 80] for at in range(0, 400, 80))])
def test_hard_arguments_arrive_as_they_are_and_run_nothing(shim: Path, arguments: list[str]) -> None:
    assert arrived(shim, windows.batch_command_line(str(shim), arguments)) == arguments
    assert not list(shim.parent.glob("pwned*"))


def test_what_cross_spawn_delivers_arrives_the_same(shim: Path) -> None:
    plain = [one for one in HARD if '"' not in one]  # cross-spawn's quotation marks end cmd.exe's quotes in `%*`
    ours = arrived(shim, windows.batch_command_line(str(shim), plain))
    assert ours == arrived(shim, cross_spawn(shim.name, plain)) == plain


def test_a_session_with_a_server_behind_a_batch_file_gets_its_arguments(shim: Path, tmp_path: Path) -> None:
    path = f"{shim.parent}{os.pathsep}{os.environ.get('PATH', '')}"
    with Host(tmp_path / "home", "shim", *HARD, env={"PATH": path}) as host:
        assert host.call(1, "search", {"text": "é"})["result"]
        assert host.end() == 0
    assert json.loads((shim.parent / "arguments").read_text()) == HARD


def test_an_argument_that_cmd_cannot_pass_on_is_refused_before_anything_starts(shim: Path, tmp_path: Path) -> None:
    with Host(tmp_path / "home", str(shim), "a\nb") as host:
        assert host.wait() == 126
        assert "an argument with a line break" in host.err
    assert not (shim.parent / "arguments").exists()


@pytest.mark.parametrize("bad", ["a\nb", "a\rb", "\0", "x" * 8200])
def test_what_cmd_cannot_pass_on_is_an_error(bad: str) -> None:
    with pytest.raises(ValueError, match=r"cmd\.exe, which runs batch files"):
        windows.batch_command_line("C:\\npx.cmd", [bad])


@pytest.mark.parametrize(("program", "is_one"), [("npx.CMD", True), ("a.bat. ", True), ("a.exe", False), ("cmd", False)])
def test_a_batch_file_is_known_by_its_ending(program: str, is_one: bool) -> None:
    assert windows.is_batch_file(program) == is_one


def test_options_that_a_batch_file_compares_are_not_quoted() -> None:
    line = windows.batch_command_line("C:\\npx.cmd", ["-y", "@acme/crm-server", "a b"])
    assert line == 'cmd.exe /d /e:on /v:off /s /c ""C:\\npx.cmd" -y @acme/crm-server "a b""'
