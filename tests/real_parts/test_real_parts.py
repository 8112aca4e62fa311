"""Real clients with real servers through the real guard; with `MCPGUARD_REAL_PARTS=1` every pair of them."""

import os
from pathlib import Path

import pytest

from tests.missing import missing

from . import parts as module
from .matrix import CLIENTS, SERVERS
from .pair import Pair
from .parts import MissingError, Parts

FEW = (
    "python-sdk-1, legacy, python-1",
    "python-sdk-1, legacy, python-2",
    "python-sdk-2, auto, python-2",
    "python-sdk-2, auto, everything",
    "python-sdk-2, legacy, python-1",
    "typescript-sdk-1, legacy, everything",
    "typescript-sdk-2, auto, python-2",
    "typescript-sdk-2, auto, typescript-2",
    "typescript-sdk-2, auto, memory",
    "typescript-sdk-2, legacy, filesystem",
)
ALL = {f"{client.label}, {server.name}": (client, server) for client in CLIENTS for server in SERVERS}
PAIRS = ALL if os.environ.get("MCPGUARD_REAL_PARTS") == "1" else FEW


@pytest.mark.timeout(600)  # it may install them
@pytest.mark.parametrize("name", PAIRS)
def test_a_real_client_and_server_lack_nothing_with_the_guard_between_them(tmp_path: Path, parts: Parts, name: str) -> None:
    pair = Pair(*ALL[name], parts, tmp_path)
    try:
        pair.run()
    except MissingError as error:
        missing(str(error), required="MCPGUARD_REQUIRE_NODE")
    assert not pair.why, "\n".join(pair.why)
    assert pair.checked >= {"call", "error", "result", "audit"}


FAILING = "#!/bin/sh\necho 'npm error code ECONNREFUSED' >&2\nexit 1\n"
HANGING = "#!/bin/sh\nexec sleep 1000\n"


@pytest.mark.parametrize(("npm", "why"), [(FAILING, "npm error code ECONNREFUSED: "), (HANGING, "not done in 0.5 s: ")])
def test_what_cannot_be_installed_is_missing_for_a_reason_and_is_not_taken_for_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, npm: str, why: str
) -> None:
    monkeypatch.setattr(module, "_INSTALL_S", 0.5 if npm is HANGING else 60)
    for name, content in (("npm", npm), ("node", "#!/bin/sh\n")):
        (tmp_path / name).write_text(content)
        (tmp_path / name).chmod(0o700)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    for _ in range(2):
        with pytest.raises(MissingError) as caught:
            Parts(tmp_path / "cache").npm("typescript")
        assert str(caught.value).splitlines()[0].startswith(f"{why}{tmp_path}/npm install ")
