from pathlib import Path

import pytest

import mcpguard
from mcpguard import __version__
from mcpguard.clients.launcher import PROGRAM
from mcpguard.doctor import Check
from mcpguard.doctor.checkup import found_on
from tests.clients.installations import impostor, installed
from tests.links import follows_links


def program(folder: Path) -> Path:
    return Path(impostor(folder / PROGRAM, folder / "touched"))


def checks(own: Path, *folders: Path) -> list[Check]:
    found = list(found_on([str(folder) for folder in folders], own))
    assert {one.check for one in found} == {"PATH"}
    return found


@follows_links
def test_a_link_to_the_own_command_is_the_own_command(tmp_path: Path) -> None:
    own = program(tmp_path / "own")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / PROGRAM).symlink_to(own)
    good = Check("PATH", True, f"{tmp_path / 'bin' / PROGRAM}, version {__version__}")
    assert checks(own, tmp_path / "none", tmp_path / "bin", tmp_path / "own", tmp_path / "bin") == [good]
    (tmp_path / "alias").symlink_to(tmp_path / "own")  # such as the folder of a virtual environment
    assert checks(tmp_path / "alias" / PROGRAM, tmp_path / "own") == [Check("PATH", True, f"{own}, version {__version__}")]


def test_the_own_command_is_the_first_one_though_its_folder_is_on_the_path_again_after_another_command(tmp_path: Path) -> None:
    own, other = program(tmp_path / "own"), program(tmp_path / "other")
    found, more = checks(own, tmp_path / "own", tmp_path / "other", tmp_path / "own")
    assert found == Check("PATH", True, f"{own}, version {__version__}")
    assert more.detail == f"there are more of them: {other}"


def test_a_command_that_is_not_on_the_path_is_noted_with_its_full_path(tmp_path: Path) -> None:
    own = program(tmp_path / "own")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/mcpguard").write_text("not executable", "utf-8")
    (tmp_path / "sources/mcpguard").mkdir(parents=True)
    (found,) = checks(own, tmp_path / "bin", tmp_path / "sources")
    assert found.is_advice
    assert found.hint.endswith(str(own))


def test_a_program_that_is_not_installed_is_not_named(tmp_path: Path) -> None:
    own, other = tmp_path / "none" / PROGRAM, installed(tmp_path / "other", "0.0.1")
    (found,) = checks(own, tmp_path / "bin")
    assert (found.detail, found.hint) == (
        f"mcpguard {__version__} is not on the PATH",
        "install it as a program: uv tool install mcpguard-cli",
    )
    (found,) = checks(own, tmp_path / "other/bin")
    assert str(own.parent) not in found.detail + found.hint
    assert found.detail.endswith(f"this one is {__version__} in {Path(mcpguard.__file__).parent}")
    assert found.hint == f"remove or upgrade {other}"


@pytest.mark.parametrize(("version", "ok"), [(__version__, True), ("0.0.1", False), (None, True)])
def test_another_command_before_the_own_is_told_with_its_version_not_run(tmp_path: Path, version: str | None, ok: bool) -> None:
    own = program(tmp_path / "own")
    other = installed(tmp_path / "other", version) if version else str(program(tmp_path / "other/bin"))
    found, more = checks(own, tmp_path / "other/bin", tmp_path / "own")
    assert (found.ok, bool(found.hint)) == (ok, True)
    assert found.detail == f"{other} is another mcpguard, version {version or 'unknown'}; this one is {__version__} in {own}"
    assert (more.is_advice, more.detail) == (True, f"there are more of them: {own}")
    assert not (tmp_path / "other/bin/touched").exists()


@pytest.mark.posix
def test_another_command_that_others_may_change_is_noted(tmp_path: Path) -> None:
    own, other = program(tmp_path / "own"), program(tmp_path / "other")
    other.parent.chmod(0o777)
    (found,) = checks(own, tmp_path / "other")
    reason = f"{other.parent} may be written to by everybody"
    told = f"{other} is found first, and other accounts may change it: {reason}"
    assert found == Check("PATH", True, told, f"remove {other.parent} from it")
    assert not (tmp_path / "other/touched").exists()
