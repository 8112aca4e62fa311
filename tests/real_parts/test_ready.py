"""The servers of `examples/policies` as their makers publish them have the tools that the policies name.

They are installed and started only with `MCPGUARD_REAL_PARTS=1`: they take 250 MB. `test_ready_policies` compares the policies
with recorded lists always.
"""

import os
from pathlib import Path

import pytest

from tests.end_to_end.host import environment
from tests.missing import missing
from tests.ready_policies import RECORDED, without_a_tool

from .parts import MissingError, Parts
from .ready import READY, record, text

pytestmark = pytest.mark.skipif(
    os.environ.get("MCPGUARD_REAL_PARTS") != "1", reason="installs eleven servers: set MCPGUARD_REAL_PARTS=1"
)


@pytest.mark.timeout(600)  # it may install them
@pytest.mark.parametrize("name", READY)
def test_each_rule_of_a_ready_policy_is_for_tools_of_its_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parts: Parts, name: str
) -> None:
    for key, value in environment(tmp_path / "home").items():
        monkeypatch.setenv(key, value)
    folder = tmp_path / "empty"
    folder.mkdir()
    try:
        found = record(name, parts, folder)
    except MissingError as error:
        missing(str(error), required="MCPGUARD_REQUIRE_NODE")
    assert without_a_tool(name, [tool["name"] for tool in found["tools"]]) == []
    recorded = (RECORDED / f"{name}.json").read_text("utf-8")
    assert text(found) == recorded, f"record them again: python -m tests.real_parts.ready {name}"
