"""Some of the matrix: what installs in seconds. All of it: `python -m tests.real_parts.run`."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.missing import missing

from . import parts as module
from .matrix import CLIENTS, SERVERS
from .pair import Pair
from .parts import MissingError, Parts
from .run import run_pairs

PAIRS = (
    ("python-sdk-1, legacy", "py1-lowlevel"),
    ("python-sdk-1, legacy", "py2-mcpserver"),
    ("python-sdk-2, auto", "py2-mcpserver"),
    ("python-sdk-2, legacy", "py2-mcpserver"),
    ("python-sdk-2, auto", "typescript-2"),
    ("python-sdk-2, auto", "everything"),
    ("python-sdk-2, legacy", "py1-fastmcp"),
    ("typescript-sdk-1, legacy", "everything"),
    ("typescript-sdk-2, auto", "py2-mcpserver"),
    ("typescript-sdk-2, auto", "typescript-2"),
    ("typescript-sdk-2, auto", "memory"),
    ("typescript-sdk-2, legacy", "filesystem"),
)


@pytest.mark.timeout(600)  # it may install them
@pytest.mark.parametrize(("client", "server"), PAIRS)
def test_a_real_client_and_server_lack_nothing_with_the_guard_between_them(
    tmp_path: Path, parts: Parts, client: str, server: str
) -> None:
    one = next(each for each in CLIENTS if each.label == client)
    other = next(each for each in SERVERS if each.name == server)
    outcome = Pair(one, other, parts, tmp_path).run()
    if outcome.missing:
        missing(outcome.missing, required="MCPGUARD_REQUIRE_NODE")
    assert not outcome.failed, "\n".join(outcome.why)
    assert {"call", "error", "result", "audit"} <= outcome.verdicts.keys()


FAILING = "#!/bin/sh\necho 'npm error code ECONNREFUSED' >&2\nexit 1\n"
HANGING = "#!/bin/sh\nexec sleep 1000\n"


def replace_npm(folder: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, content in (("npm", text), ("node", "#!/bin/sh\n")):
        (folder / name).write_text(content)
        (folder / name).chmod(0o700)
    monkeypatch.setenv("PATH", str(folder), prepend=":")


@pytest.mark.parametrize(("npm", "why"), [(FAILING, "npm error code ECONNREFUSED: "), (HANGING, "not done in 0.5 s: ")])
def test_what_cannot_be_installed_is_missing_for_a_reason_and_is_not_taken_for_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, npm: str, why: str
) -> None:
    monkeypatch.setattr(module, "_INSTALL_S", 0.5 if npm is HANGING else 60)
    replace_npm(tmp_path, npm, monkeypatch)
    for _ in range(2):
        with pytest.raises(MissingError) as caught:
            Parts(tmp_path / "cache").npm("typescript")
        assert str(caught.value).splitlines()[0].startswith(f"{why}{tmp_path}/npm install ")


def test_each_pair_is_told_of_when_it_has_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace_npm(tmp_path, FAILING, monkeypatch)
    client = next(one for one in CLIENTS if one.label == "typescript-sdk-2, auto")
    servers = [one for one in SERVERS if one.name in {"everything", "memory"}]
    told: list[str] = []
    with ThreadPoolExecutor(1) as pool:
        pairs = [Pair(client, one, Parts(tmp_path / "cache"), tmp_path / one.name) for one in servers]
        run_pairs(pool, pairs, told.append)
    assert told == [f"{at} of 2: {client.label} with {one.name}: not here" for at, one in enumerate(servers, 1)]
