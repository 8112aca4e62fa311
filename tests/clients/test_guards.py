"""What is known of a mcpguard that a client's file names."""

import os
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest

from mcpguard import __version__
from mcpguard.clients.guards import Guards, NamedGuard, version_of
from mcpguard.clients.launcher import PROGRAM as NAME
from tests.cli.account import PROGRAM
from tests.clients.installations import impostor, installed
from tests.links import follows_links

IS_ROOT = sys.platform != "win32" and os.geteuid() == 0


@pytest.fixture
def touched(tmp_path: Path) -> Iterator[Path]:
    """A file that an impostor makes if it is run."""
    path = tmp_path / "touched"
    yield path
    assert not path.exists()


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    folder = tmp_path / "shared"
    folder.mkdir()
    folder.chmod(0o777)
    return folder


def guard(program: str, *, path: str = "/usr/bin", start: Path | None = Path(), is_of_project: bool = False) -> NamedGuard:
    return Guards({"PATH": path}).examine(program, start, is_of_project=is_of_project)


@follows_links
@pytest.mark.parametrize(
    "packages", ["lib/python3.12/site-packages", "lib/python3/dist-packages", "Lib/site-packages", "site-packages"]
)
def test_the_version_is_the_one_that_is_recorded_beside_the_program(tmp_path: Path, packages: str) -> None:
    program = Path(installed(tmp_path / "tools", "0.0.9", packages))
    assert version_of(program) == "0.0.9"
    (tmp_path / NAME).symlink_to(program)
    assert version_of(tmp_path / NAME) == "0.0.9"


def test_a_version_that_not_one_installation_has_recorded_is_unknown_and_nothing_is_run(tmp_path: Path, touched: Path) -> None:
    assert version_of(Path(impostor(tmp_path / f"a/bin/{NAME}", touched))) is None
    assert version_of(Path(installed(tmp_path / "tools", "0.0.9", listed=False))) is None
    assert version_of(tmp_path / f"gone/{NAME}") is None
    two = Path(installed(tmp_path / "two", "0.0.8"))
    installed(tmp_path / "two", "0.0.9", "lib/python3.13/site-packages")
    assert version_of(two) is None


@pytest.mark.parametrize("record", [b"Name: mcpguard-cli\nVersion: \xff\x1b[2J\n", b"Name: mcpguard-cli\n"])
def test_a_version_that_cannot_be_read_is_unknown(tmp_path: Path, record: bytes) -> None:
    program = Path(installed(tmp_path, "0.0.9"))
    (metadata,) = tmp_path.glob("lib/*/*/*/METADATA")
    metadata.write_bytes(record)
    assert version_of(program) is None


@pytest.mark.posix
@pytest.mark.parametrize(
    "place", ["", "bin", f"bin/{NAME}", "lib", "lib/python3.12/site-packages/mcpguard_cli-0.0.9.dist-info/METADATA"]
)
def test_a_version_that_other_accounts_could_have_written_is_unknown(tmp_path: Path, place: str) -> None:
    program = Path(installed(tmp_path / "tools", "0.0.9"))
    (tmp_path / "tools" / place).chmod(0o777)
    assert version_of(program) is None


@follows_links
def test_this_mcpguard_is_known_by_its_path_and_by_a_link(tmp_path: Path) -> None:
    link = tmp_path / NAME
    link.symlink_to(PROGRAM)
    for program in (PROGRAM, str(link)):
        for is_of_project in (False, True):
            assert guard(program, is_of_project=is_of_project) == NamedGuard("known", "", Path(program), __version__)


@pytest.mark.posix
def test_a_program_or_a_link_to_this_one_where_everybody_may_write_guards_nothing(shared: Path, touched: Path) -> None:
    program = impostor(shared / f"bin/{NAME}", touched)
    for is_of_project in (False, True):
        found = guard(program, is_of_project=is_of_project)
        assert (found.state, found.holds, found.is_gone, found.version) == ("unsafe", False, False, None)
        assert found.fault == f"other accounts may change its mcpguard {program}: {shared} may be written to by everybody"
    assert guard("mcpguard", path=str(shared / "bin")).state == "unsafe"
    (shared / NAME).symlink_to(PROGRAM)
    assert guard(str(shared / NAME)).state == "unsafe"


@pytest.mark.posix
def test_a_missing_program_that_everybody_may_create_guards_nothing_and_another_one_does_not_start(shared: Path) -> None:
    found = guard(str(shared / "gone" / NAME))
    assert (found.state, found.is_gone, found.holds) == ("unsafe", True, False)
    assert found.fault.startswith(f"other accounts may create its mcpguard {shared}/gone/{NAME}: ")
    for name in ("/gone/mcpguard", "/\0/mcpguard", "/\ud800/mcpguard"):
        found = guard(name)
        assert (found.state, found.is_gone, found.holds) == ("missing", True, True)


def test_a_program_that_a_projects_file_names_must_be_on_the_path(tmp_path: Path, touched: Path) -> None:
    program = impostor(tmp_path / f"project/bin/{NAME}", touched)
    found = guard(program, is_of_project=True)
    assert (found.state, found.holds) == ("unsafe", False)
    assert found.fault == f"its mcpguard is neither this one nor on your PATH, so it may be the project's: {program}"
    known = installed(tmp_path / "tools", "0.0.9")
    for name in (known, "mcpguard"):
        found = guard(name, path=str(tmp_path / "tools/bin"), is_of_project=True)
        assert found == NamedGuard("known", "", Path(known), "0.0.9")


@pytest.mark.parametrize("path", [".", "bin", ""])
def test_relative_folders_make_nothing_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, touched: Path, path: str) -> None:
    impostor(tmp_path / NAME, touched)
    impostor(tmp_path / f"bin/{NAME}", touched)
    monkeypatch.chdir(tmp_path)
    assert not guard("mcpguard", path=f"{path}{os.pathsep}/usr/bin", start=tmp_path, is_of_project=True).version
    assert guard(str(tmp_path / NAME), path=f"{path}{os.pathsep}/usr/bin", is_of_project=True).state == "unsafe"


def test_a_relative_path_leads_into_a_project_whoever_wrote_it(tmp_path: Path, touched: Path) -> None:
    impostor(tmp_path / f"bin/{NAME}", touched)
    assert guard(f"./bin/{NAME}", start=tmp_path).state == "unsafe"
    assert guard(f"bin/{NAME}", start=None).state == "unseen"


def test_where_only_the_client_knows_the_path_a_projects_file_is_not_believed() -> None:
    program = "${workspaceFolder}/bin/mcpguard"
    assert guard(program, start=None) == NamedGuard("known")
    found = guard(program, start=None, is_of_project=True)
    assert found == NamedGuard("unseen", f"only the client knows where its mcpguard is: {program}")
    assert not found.holds


@pytest.mark.posix
@pytest.mark.skipif(not IS_ROOT, reason="only root can give a file away")
def test_a_program_of_another_account_guards_nothing(tmp_path: Path) -> None:
    program = Path(impostor(tmp_path / f"bin/{NAME}"))
    os.chown(program, 12345, 12345)
    assert guard(str(program)).fault.endswith(f"{program} belongs to user 12345")
    os.chown(program, 0, 0)
    (tmp_path / "link").symlink_to(program)
    os.chown(tmp_path / "link", 12345, 12345, follow_symlinks=False)
    assert guard(str(tmp_path / "link")).fault.endswith("/link belongs to user 12345")


@pytest.mark.skipif(
    sys.platform == "win32" and not any(Path(sysconfig.get_path("purelib")).glob("mcpguard_cli-*")),
    reason="the environment for Wine has no record of mcpguard's installation",
)
def test_the_interpreters_environment_is_an_installation_of_this_version() -> None:
    assert version_of(Path(PROGRAM)) == __version__
