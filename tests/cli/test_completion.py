"""Completion in real shells on a terminal, and the values that it offers."""

import contextlib
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from mcpguard.cli import completion
from mcpguard.config import Settings
from tests.cli.command import Terminal, calls, mcpguard, output, sqlite
from tests.clients.installations import impostor
from tests.end_to_end.host import environment, policy, rule
from tests.missing import missing

SHOW = "\x18\x10"
"""The keys that show the line and empty it."""

START = {
    "bash": (
        ["--norc", "--noprofile", "-i"],
        """show() { printf '<<%s>>\\n' "$READLINE_LINE"; READLINE_LINE=; }; bind -x '"\\C-x\\C-p": show'; """
        'eval "$(mcpguard completion bash)"; echo REA""DY',
    ),
    "zsh": (
        ["-f", "-i"],
        """autoload -U compinit; compinit -u -D; show() { zle -I; print -r -- "<<$BUFFER>>"; BUFFER=; }; zle -N show; """
        """bindkey '^X^P' show; eval "$(mcpguard completion zsh)"; echo REA""DY""",
    ),
    "fish": (
        ["--no-config", "-i"],
        "function show; printf '<<%s>>\\n' (commandline | string collect); commandline -r ''; end; bind \\cx\\cp show; "
        'mcpguard completion fish | source; echo REA""DY',
    ),
}
"""The arguments of each shell, and the line that loads the script and defines the keys `SHOW`."""

RULES = [
    rule("5/1m", user="al ice@acme.com", tool="search_customers"),
    rule("5/1m", agent="Claude Code::subagent::Explore"),
    rule("5/1m", agent="Claude Code::subagent::Plan"),
    rule("5/1m", agent="*::api::*", server="c'r$m"),
]


class Shell(Terminal):
    """A shell that has loaded the script."""

    def __init__(self, kind: str, home: Path) -> None:
        path = shutil.which(kind)
        if not path:
            missing(f"{kind} is not installed")
        arguments, setup = START[kind]
        (home / "bin").mkdir()
        program = home / "bin/mcpguard"
        program.write_text(f'#!/bin/sh\nexec {sys.executable} -m mcpguard "$@"\n', "utf-8")
        program.chmod(0o755)
        search = f"{program.parent}{os.pathsep}{os.environ['PATH']}"
        env = environment(home, PATH=search, HOME=str(home), TERM="xterm", LANG="C.UTF-8")
        super().__init__([path, *arguments], env, columns=300, lines=40, cwd=home)
        self.type(f"{setup}\n".encode())
        self.wait_for(b"READY")

    def read(self) -> bytes:
        some = super().read()
        if b"\x1b[c" in some or b"\x1b[0c" in some:  # fish asks what terminal this is
            self.type(b"\x1b[?62;22c")
        return some

    def completed(self, line: str) -> str:
        """The line after it was typed and Tab was pressed."""
        self.data = b""
        self.type(f"{line}\t{SHOW}".encode())
        return self.wait_for(rb"<<(.*?)>>\r?\n")[1].decode()


@pytest.fixture(scope="module", params=list(START))
def shell(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    home = tmp_path_factory.mktemp(request.param)
    policy(home, "".join(RULES))
    with contextlib.closing(Shell(request.param, home)) as opened:
        yield opened


@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        ("mcpguard run --us", "mcpguard run --user "),
        ("mcpguard completion fi", "mcpguard completion fish "),
        ("true && mcpguard policy uns", "true && mcpguard policy unset "),
        ("A=1 mcpguard whoa", "A=1 mcpguard whoami "),
        (r"mcpguard run --user al\ ice@a", r"mcpguard run --user al\ ice@acme.com "),
        ("mcpguard run --user=al", r"mcpguard run --user=al\ ice@acme.com "),
        ('mcpguard run --user "al', 'mcpguard run --user "al ice@acme.com" '),
        ("mcpguard run --user 'al", "mcpguard run --user 'al ice@acme.com' "),
        ("mcpguard run --agent Cl", r"mcpguard run --agent Claude\ Code::subagent::"),
        (r"mcpguard run --agent=Claude\ Code::subagent::P", r"mcpguard run --agent=Claude\ Code::subagent::Plan "),
        ('mcpguard run --agent "Claude Code::subagent::E', 'mcpguard run --agent "Claude Code::subagent::Explore" '),
        ("mcpguard run --agent 'Claude Code::sub", "mcpguard run --agent 'Claude Code::subagent::"),
        ("mcpguard audit tail --decision rate", "mcpguard audit tail --decision rate_limited "),
        ("mcpguard policy explain --tool search_customers --user al",
         r"mcpguard policy explain --tool search_customers --user al\ ice@acme.com "),
        ("mcpguard run --user alice --agent Z --policy pol", "mcpguard run --user alice --agent Z --policy policy.toml "),
        ("mcpguard run --quiet -- ./pol", "mcpguard run --quiet -- ./policy.toml "),
        *((line, line) for line in ("mcpguard nonsense --", "mcpguard policy sett --us")),
        *((line, line) for line in ("mcpguard run --user Zo", 'mcpguard run --user "Zo')),
    ],
)  # fmt: skip
def test_tab_completes_the_line_if_there_is_a_value(shell: Shell, typed: str, completed: str) -> None:
    assert shell.completed(typed) == completed


def test_tab_starts_no_program_that_the_line_names_by_its_path(shell: Shell, tmp_path: Path) -> None:
    program = impostor(tmp_path / "mcpguard", tmp_path / "touched")
    shell.completed(f"{program} aud")
    assert not (tmp_path / "touched").exists()


def test_zsh_loads_the_script_though_nothing_has_started_its_completion(tmp_path: Path) -> None:
    zsh = shutil.which("zsh")
    if not zsh:
        missing("zsh is not installed")
    (tmp_path / "script").write_text(mcpguard(tmp_path, "completion", "zsh").stdout, "utf-8")
    command = [zsh, "-f", "-c", 'eval "$(cat script)"; print -r -- $_comps[mcpguard]']
    done = subprocess.run(command, env={"HOME": str(tmp_path)}, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("_mcpguard_completion\n", "")


def offered(home: Path, line: str, **env: str) -> list[str]:
    """The words that bash is offered for a line, without what it quotes."""
    out = output(home, _MCPGUARD_COMPLETE="bash_complete", _MCPGUARD_LINE=line, _MCPGUARD_BREAKS="", **env)
    return out.splitlines()[1::3]


def test_names_without_control_characters_come_from_the_rules_and_from_the_audit_log(tmp_path: Path) -> None:
    policy(tmp_path, rule("5/1m", user="alice", tool="search_*"))
    for tool in ("delete_user", "delete\x1b[2J"):
        calls(tmp_path, tool, 1, "--user", "bob", "--server", "crm", "--agent", "Codex::api::x")
    assert offered(tmp_path, "mcpguard run --user ") == ["alice", "bob"]
    assert offered(tmp_path, "mcpguard audit tail --agent ") == ["Codex::api::x"]
    assert offered(tmp_path, "mcpguard reset --server ") == ["crm"]
    assert offered(tmp_path, "mcpguard policy explain --tool ") == ["delete_user"]
    assert offered(tmp_path, "mcpguard policy unset --tool '") == ["search_*", "delete_user"]
    policy(tmp_path, "broken")
    assert offered(tmp_path, "mcpguard run --user ") == ["bob"]
    axes = "user agent tool server session arguments none"
    assert offered(tmp_path, "mcpguard policy unset --user al --per ") == axes.split()


@pytest.mark.posix  # bash reads a backslash as an escape
def test_the_store_and_the_policy_that_the_line_names_are_read(tmp_path: Path) -> None:
    other = policy(tmp_path / "other", rule("5/1m", user="carol"))
    calls(tmp_path / "other", "search", 1, "--user", "dora")
    line = f"mcpguard run --policy {other} --store {sqlite(tmp_path)}/other/mcpguard.db --user "
    assert offered(tmp_path, line) == ["carol", "dora"]


@pytest.mark.parametrize("text", ["[", '[store]\nurl = "redis://127.0.0.1:1/0"', '[store]\nurl = "sqlite:///dev/null/x"'])
def test_an_error_offers_no_value_and_says_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.toml").write_text(text, "utf-8")
    policy(tmp_path, "broken")
    assert offered(tmp_path, "mcpguard run --user ") == []
    assert offered(tmp_path, "mcpguard policy sett --us") == []


def test_a_store_that_takes_too_long_offers_what_was_found_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    never = threading.Event()
    calls(tmp_path, "search", 1)
    policy(tmp_path, rule("5/1m", user="carol"))
    with monkeypatch.context() as patched:
        patched.setattr(Settings, "read_store", lambda _: never.wait())
        assert offered(tmp_path, "mcpguard run --user ") == ["carol"]
    never.set()


def test_completion_changes_nothing(tmp_path: Path) -> None:
    assert offered(tmp_path, "mcpguard run --user ") == []
    assert list(tmp_path.iterdir()) == []


BREAKS = " \t\n\"'@><=;|&(:"


@pytest.mark.parametrize(
    ("line", "value", "rest"),
    [
        ("x a", "ab c", r"ab\ c"),
        ("x a::b", "a::b c", r"b\ c"),
        ("x --user=a", "--user=ab", "ab"),
        ("x alice@ac", "alice@acme.com", "@acme.com"),
        ("x 'a b::", "a b::c 'd", r"a b::c '\''d"),
        ('x "a b::', 'a b::c "$d`', r"a b::c \"\$d\`"),
        ('x "a b"::', "a b::c", "c"),
        ('x "a', "a;b", "a;b"),
        ("x a", "a;b$(c)", r"a\;b\$\(c\)"),
        (r"x a\:", "a:b", "a:b"),
        ("x ", "客 户", r"客\ 户"),
    ],
)
def test_a_value_is_quoted_as_the_rest_of_the_word(line: str, value: str, rest: str) -> None:
    typed = completion.read(line, BREAKS)
    assert value.startswith(typed.word)
    assert typed.rest_of(value) == rest


@pytest.mark.parametrize(
    ("line", "index", "lines"),
    [
        ("mcpguard run --agent Cl", 3, ["plain", "'Claude Code::subagent::Explore'", "_"]),
        ("mcpguard run --agent='Claude Co", 2, ["plain", "'--agent=Claude Code::subagent::Explore'", "_"]),
        ("mcpguard reset --server c", 3, ["plain", "'c''r$m'", "_"]),
        ("mcpguard completion --he", 2, ["plain", "--help", "Show this message and exit."]),
        ("mcpguard run --policy x", 3, ["file", "_", "_"]),
    ],
)  # fmt: skip
def test_powershell_gets_three_lines_for_each_value(tmp_path: Path, line: str, index: int, lines: list[str]) -> None:
    policy(tmp_path, RULES[1] + RULES[3])
    env = {"_MCPGUARD_COMPLETE": "powershell_complete", "COMP_WORDS": line, "COMP_CWORD": str(index)}
    assert output(tmp_path, **env).splitlines() == lines


def test_the_script_of_powershell_registers_a_completer(tmp_path: Path) -> None:
    script = output(tmp_path, "completion", "powershell")
    assert "Register-ArgumentCompleter -Native -CommandName mcpguard " in script
    assert "$env:_MCPGUARD_COMPLETE = 'powershell_complete'" in script


@pytest.mark.parametrize("instruction", ["bash_source", "tcsh_complete", "x"])
def test_an_unknown_request_offers_nothing(tmp_path: Path, instruction: str) -> None:
    assert output(tmp_path, _MCPGUARD_COMPLETE=instruction) == ""
