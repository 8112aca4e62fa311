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
    requirements = [*project["dependencies"], *extras["redis"], *extras["otel"], *extras["yaml"]]
    bounded = {re.split(r"[\[>]", one)[0] for one in requirements if re.search(r",<[\d.]+$", one)}
    assert bounded >= {"click", "httpx2", "mcp", "opentelemetry-sdk", "pyjwt", "redis", "rich", "ruamel.yaml"}


def test_the_lock_names_no_index_but_pypi() -> None:
    hosts = set(re.findall(r"https?://([^/\"]+)", (ROOT / "uv.lock").read_text("utf-8")))
    assert hosts == {"pypi.org", "files.pythonhosted.org"}


def test_the_release_installs_the_uv_that_the_lock_has() -> None:
    packages = {one["name"]: one for one in tomllib.loads((ROOT / "uv.lock").read_text("utf-8"))["package"]}
    (pinned,) = re.findall(r'UV_VERSION: "(.*)"', (ROOT / ".github/workflows/release.yml").read_text("utf-8"))
    assert pinned == packages["uv"]["version"]
