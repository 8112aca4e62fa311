import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_each_action_of_the_workflows_is_pinned_to_a_commit_beside_its_tag() -> None:
    steps = [
        line for file in (ROOT / ".github").rglob("*.yml") for line in file.read_text("utf-8").splitlines() if "uses:" in line
    ]
    assert [line for line in steps if not re.search(r"@[0-9a-f]{40} # v\d+\.\d+\.\d+$", line)] == []


def test_a_library_whose_inner_parts_are_used_has_an_upper_bound() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = project["optional-dependencies"]
    requirements = [*project["dependencies"], *extras["redis"], *extras["otel"]]
    bounded = {re.split(r"[\[>]", one)[0] for one in requirements if re.search(r",<\d+$", one)}
    assert bounded >= {"click", "httpx2", "mcp", "opentelemetry-sdk", "redis"}
