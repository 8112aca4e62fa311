import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mcpguard import run_options
from mcpguard.cli.run import run as command
from tests.cli.command import OBEDIENT
from tests.cli.command import command as mcpguard
from tests.end_to_end.host import DEADLINE_S, environment

ODD = "--server=crm --denials=result --denials=none --observe=1 --user= -- - -x --no-such --help --= = -v=--observe --observ ü"
WORDS = [
    *[name for option in run_options.OPTIONS for name in option.name.split("/")],
    *ODD.split(),
    "-h",
    "auto",
    "error",
    "result",
    "npx",
    "",
]


def by_click(argv: list[str]) -> dict[str, object] | None:
    """The arguments that click parses; None for an error or a request for help."""
    try:
        found = command.make_context("mcpguard run", argv).params
    except (click.ClickException, click.exceptions.Exit):
        return None
    return found | {"argv": list(found["argv"])} if found["argv"] else None


@given(st.lists(st.sampled_from(WORDS), max_size=6))
@example(["--server", "--observe", "npx"])
@example(["--server", "crm", "--", "--", "npx"])
@example(["npx", "--server", "crm"])
@example(["--server", "crm", "--server=files", "npx"])
@example(["--observe", "--observe", "npx"])
@example(["--observe", "--enforce", "npx"])
def test_both_parsers_read_a_command_line_alike(argv: list[str]) -> None:
    assert run_options.parse(["run", *argv]) == by_click(argv)


@pytest.mark.parametrize("argv", [[], ["policy", "show"], ["--version"], ["runs", "x"]])
def test_it_parses_no_other_command(argv: list[str]) -> None:
    assert run_options.parse(argv) is None


HEAVY = set(
    "anyio asyncio click copy dataclasses hashlib httpx2 inspect jwt logging mcp pathlib redis rich ssl tomli_w mcpguard.alerts"
    " mcpguard.identity.jwt_settings mcpguard.identity.token mcpguard.policy.lint mcpguard.wire.skim".split()
)
LATER = set(
    "array binascii bisect bz2 datetime lzma math platformdirs shutil sqlite3 tomllib urllib.parse zlib mcpguard.wire.form"
    " mcpguard.policy.model mcpguard.identity.server_name mcpguard.session.machine mcpguard.relay.bookkeeper"
    " mcpguard.stores.api".split()
)
if sys.platform == "win32":
    LATER -= {"shutil", "bz2", "lzma", "zlib"}  # which find batch files


def started(command: list[str], env: dict[str, str]) -> str:
    """What a command without input says on stderr. It must succeed."""
    pipes: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    said: str = subprocess.run(command, env=env, timeout=DEADLINE_S, check=True, text=True, **pipes).stderr
    return said


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The modules that `run` loads, in their order: a module after those that it imports."""
    python, *words = mcpguard("run", "--server", "crm", "--", *OBEDIENT)
    said = started([python, "-X", "importtime", *words], environment(tmp_path_factory.mktemp("home")))
    return [line.rpartition("|")[2].strip() for line in said.splitlines() if line.startswith("import time:")]


def test_run_loads_no_heavy_module(loaded: list[str]) -> None:
    assert "mcpguard.stores.sqlite.store" in loaded
    assert not HEAVY.intersection(loaded)


def test_run_loads_what_only_calls_need_after_the_traffic_has_started(loaded: list[str]) -> None:
    assert not LATER.intersection(loaded[: loaded.index("mcpguard.relay.traffic")])


def test_run_loads_at_its_start_what_later_calls_and_policies_need_since_an_upgrade_may_replace_it(loaded: list[str]) -> None:
    assert {"mcpguard.wire.form", "mcpguard.documents.toml"} <= set(loaded)


def started_with(tmp_path: Path, program: str) -> None:
    """Start `run` in a Python that executes a program first."""
    (tmp_path / "sitecustomize.py").write_text(program, encoding="utf-8")
    env = environment(tmp_path)
    path = os.pathsep.join(filter(None, (str(tmp_path), env.get("PYTHONPATH"))))
    started(mcpguard("run", "--quiet", "--", *OBEDIENT), env | {"PYTHONPATH": path})


def test_garbage_is_collected_once_run_has_loaded_its_modules(tmp_path: Path) -> None:
    started_with(tmp_path, "import gc, os; leave = os._exit; os._exit = lambda status: leave(0 if gc.isenabled() else 1)")


COMPILES = """
import builtins, os, sys
usual = builtins.compile
def compile(source, *args, **kwargs):
    if isinstance(source, str) and "mcpguard.relay.traffic" not in sys.modules:
        os._exit(99)
    return usual(source, *args, **kwargs)
builtins.compile = compile
"""


def test_run_compiles_no_annotation_before_messages_pass(tmp_path: Path) -> None:
    """The first compilation, such as that of an annotation in quotes in a `NamedTuple`, makes the types of the syntax tree."""
    started_with(tmp_path, COMPILES)
