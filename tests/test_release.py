"""What keeps sources from being published, and what the package's page shows. `.ci/release.py dry-run` runs the steps."""

import re
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from mcpguard import __version__

ROOT = Path(__file__).parents[1]
ADDRESS = "https://example.com/acme/mcpguard"


def loaded(name: str) -> ModuleType:
    spec = spec_from_file_location(name, ROOT / f".ci/{name}.py")
    assert spec
    assert spec.loader
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


RELEASE = loaded("release")


@pytest.fixture
def ready(tmp_path: Path) -> Path:
    """Sources that may be published as v1.2.3."""
    for name, text in {
        "mcpguard/__init__.py": '__version__ = "1.2.3"\n',
        "pyproject.toml": f'[tool.hatch.metadata.hooks.custom]\nrepository = "{ADDRESS}"\n',
        "CHANGELOG.md": "# Changelog\n\n## 1.2.3, 2026-12-31\n\nNew.\n\n- One.\n\n## 1.2.2, 2026-11-30\n\nOld.\n",
        "README.md": "# mcpguard\n",
        "docs/index.md": "# mcpguard\n",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, "utf-8")
    return tmp_path


def test_sources_that_are_ready_are_published_with_their_part_of_the_changelog(ready: Path) -> None:
    assert RELEASE.blockers(ready, "v1.2.3") == []
    assert RELEASE.section(ready) == ("2026-12-31", "New.\n\n- One.")


@pytest.mark.parametrize(
    ("file", "text", "problem"),
    [
        ("mcpguard/__init__.py", '__version__ = "1.2.2"\n', "the tag is v1.2.3, but __version__"),
        ("pyproject.toml", '[tool.hatch.metadata.hooks.custom]\nrepository = ""\n', "write the address of the repository"),
        (
            "CHANGELOG.md",
            "# Changelog\n\n## 1.2.3, unreleased\n\nNew.\n",
            "CHANGELOG.md says 1.2.3, unreleased: write the date",
        ),
        ("docs/index.md", "The package is not published yet.\n", "docs/index.md: take out the sentence"),
    ],
)
def test_a_release_is_refused_while_something_is_not_ready(ready: Path, file: str, text: str, problem: str) -> None:
    (ready / file).write_text(text, "utf-8")
    (found,) = RELEASE.blockers(ready, "v1.2.3")
    assert problem in found


def test_a_version_that_the_changelog_does_not_have_is_refused(ready: Path) -> None:
    (ready / "CHANGELOG.md").write_text("# Changelog\n\n## 1.2.30, 2026-12-31\n\nNew.\n", "utf-8")
    with pytest.raises(RELEASE.Unready, match=r"nothing about 1\.2\.3\n"):
        RELEASE.check(ready, "v1.2.3")


def test_the_changelog_begins_with_this_version() -> None:
    assert re.findall(r"^## ([\d.]+)", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)[0] == __version__


@pytest.fixture
def page_of(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The page's fields for an address, without hatchling, which only builds have."""
    for part in ("hatchling", "hatchling.metadata", "hatchling.metadata.plugin"):
        monkeypatch.setitem(sys.modules, part, ModuleType(part))
    interface = SimpleNamespace(MetadataHookInterface=object)
    monkeypatch.setitem(sys.modules, "hatchling.metadata.plugin.interface", interface)

    def page(address: str) -> dict[str, Any]:
        hook = loaded("package_page").PackagePage()
        hook.root, hook.config = str(ROOT), {"repository": address}
        metadata: dict[str, Any] = {"version": "1.2.3"}
        hook.update(metadata)
        return metadata

    return page


def test_every_link_of_the_package_page_leads_to_the_tag_of_the_version(page_of: Any) -> None:
    shown = page_of(f"{ADDRESS}/")
    targets = re.findall(r"(!?)\[[^][]*\]\(([^)]*)\)", shown["readme"]["text"])
    assert len(targets) > 30
    assert [target for _, target in targets if not target.startswith("https://")] == []
    assert ("!", f"{ADDRESS}/raw/v1.2.3/docs/images/audit-tail.svg") in targets
    assert ("", f"{ADDRESS}/blob/v1.2.3/docs/policy.md#how-rules-override") in targets
    assert shown["urls"]["Repository"] == ADDRESS


def test_without_an_address_the_page_is_the_readme(page_of: Any) -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    assert page_of("") == {"version": "1.2.3", "urls": {}, "readme": {"content-type": "text/markdown", "text": readme}}
