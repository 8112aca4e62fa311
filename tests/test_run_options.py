import os
import subprocess
import sys
from pathlib import Path
from typing import Final

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
WORDS = [*[option.name for option in run_options.OPTIONS], *ODD.split(), "-h", "auto", "error", "result", "npx", ""]


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
def test_both_parsers_read_a_command_line_alike(argv: list[str]) -> None:
    assert run_options.parse(["run", *argv]) == by_click(argv)


@pytest.mark.parametrize("argv", [[], ["policy", "show"], ["--version"], ["runs", "x"]])
def test_it_parses_no_other_command(argv: list[str]) -> None:
    assert run_options.parse(argv) is None


HEAVY = {
    "anyio",
    "asyncio",
    "click",
    "copy",
    "dataclasses",
    "hashlib",
    "httpx2",
    "inspect",
    "jwt",
    "logging",
    "mcp",
    "mcpguard.identity.jwt_settings",
    "mcpguard.identity.token",
    "mcpguard.wire.skim",
    "mcpguard.alerts",
    "mcpguard.policy.lint",
    "pathlib",
    "redis",
    "rich",
    "ssl",
    "tomli_w",
}


LATER = {
    "array",
    "binascii",
    "bisect",
    "bz2",
    "datetime",
    "lzma",
    "math",
    "mcpguard.wire.form",
    "mcpguard.policy.model",
    "mcpguard.identity.server_name",
    "mcpguard.session.machine",
    "mcpguard.relay.bookkeeper",
    "mcpguard.stores.api",
    "platformdirs",
    "shutil",
    "sqlite3",
    "tomllib",
    "urllib.parse",
    "zlib",
}


def modules_loaded_by_run(tmp_path: Path) -> list[str]:
    """The modules, in the order in which they are loaded: a module after those that it imports."""
    python, *words = mcpguard("run", "--server", "crm", "--", *OBEDIENT)
    said = subprocess.run(
        [python, "-X", "importtime", *words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=environment(tmp_path),
        timeout=DEADLINE_S,
        check=True,
    ).stderr.decode()
    return [line.rpartition("|")[2].strip() for line in said.splitlines() if line.startswith("import time:")]


def test_run_loads_no_heavy_module(tmp_path: Path) -> None:
    loaded = modules_loaded_by_run(tmp_path)
    assert "mcpguard.stores.sqlite.store" in loaded
    assert not HEAVY.intersection(loaded)


def test_garbage_is_collected_once_run_has_loaded_its_modules(tmp_path: Path) -> None:
    python, *words = mcpguard("run", "--quiet", "--", *OBEDIENT)
    at_exit = "import gc, os; leave = os._exit; os._exit = lambda status: leave(0 if gc.isenabled() else 1)"
    env = customized(tmp_path, at_exit)
    subprocess.run([python, *words], stdin=subprocess.DEVNULL, env=env, timeout=DEADLINE_S, check=True)


def customized(tmp_path: Path, program: str) -> dict[str, str]:
    """An environment in which Python executes a program when it starts."""
    (tmp_path / "sitecustomize.py").write_text(program, encoding="utf-8")
    env = environment(tmp_path)
    return env | {"PYTHONPATH": os.pathsep.join(filter(None, (str(tmp_path), env.get("PYTHONPATH"))))}


def test_run_loads_what_only_calls_need_after_the_traffic_has_started(tmp_path: Path) -> None:
    loaded = modules_loaded_by_run(tmp_path)
    before = loaded[: loaded.index("mcpguard.relay.traffic")]
    finds_batch_files = {"shutil", "bz2", "lzma", "zlib"} if sys.platform == "win32" else set()
    assert not LATER.intersection(before) - finds_batch_files


def test_run_loads_at_its_start_what_later_calls_and_policies_need_since_an_upgrade_may_replace_it(tmp_path: Path) -> None:
    assert {"mcpguard.wire.form", "mcpguard.documents.toml"} <= set(modules_loaded_by_run(tmp_path))


COMPILES: Final = """
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
    python, *words = mcpguard("run", "--quiet", "--", *OBEDIENT)
    env = customized(tmp_path, COMPILES)
    subprocess.run([python, *words], stdin=subprocess.DEVNULL, env=env, timeout=DEADLINE_S, check=True)
