"""`mcpguard policy edit`."""

import errno
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from mcpguard.policy.parse import STARTER
from tests.build import raising
from tests.cli.command import BOUND, complaint, mcpguard, on_terminal, output, process
from tests.policy.test_editing import BY_HAND

SPOILED = BY_HAND.replace('report"', "report")
CHANGED = BY_HAND.replace("100", "200")


def editor(drafts: Path, *lines: str) -> str:
    """The command of an editor, which runs lines of Python on a text in `text`, and saves it."""
    script = drafts.parent / f"{drafts.name}-editor.py"
    read, write = "open(sys.argv[1], newline='').read()", "open(sys.argv[1], 'w', newline='').write(text)"
    script.write_text("\n".join(["import os, sys", f"text = {read}", *lines, write]), "utf-8")
    return f'"{sys.executable}" "{script}"'


CHANGE = "text = text.replace('100', '200')"
SPOIL = "text = text.replace('report\"', 'report')"
MEND = "text = text.replace('report\\n', 'report\"\\n')"


@pytest.fixture
def drafts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for temporary files."""
    return tmp_path_factory.mktemp("drafts")


def edit(home: Path, editor: str, *under: str, **env: str) -> subprocess.CompletedProcess[str]:
    """`mcpguard policy edit` in a process of its own."""
    return process(home, "policy", "edit", under=under, preexec=None, VISUAL=editor, **env)


def test_edit_checks_the_file_after_the_editor_and_says_if_nothing_was_changed(
    tmp_path: Path, file: Path, drafts: Path
) -> None:
    assert output(tmp_path, "policy", "edit", VISUAL=editor(drafts, CHANGE)) == f"{file}: OK, 2 rules\n"
    assert output(tmp_path, "policy", "edit", VISUAL=editor(drafts)) == f"{file}: OK, 2 rules (unchanged)\n"
    assert file.read_text("utf-8") == CHANGED
    assert [one for one in tmp_path.iterdir() if one.suffix != ".lock"] == [file]  # on Windows the lock is a file


@pytest.mark.parametrize("argv", ["policy edit", "demo --keep"])
def test_a_disk_without_room_is_one_line_and_a_hint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, argv: str) -> None:
    monkeypatch.setattr(tempfile, "mkdtemp", raising(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))))
    hint = "hint: set TMPDIR to a folder that you may write to, on a disk that is not full\n"
    said = f"mcpguard: no temporary folder can be made: No space left on device\n{hint}"
    assert complaint(tmp_path, *argv.split(), status=1) == said


def test_without_a_terminal_edit_does_not_save_a_broken_text(tmp_path: Path, file: Path, drafts: Path) -> None:
    said = complaint(tmp_path, "policy", "edit", status=78, VISUAL=editor(drafts, SPOIL))
    assert said.startswith(f"{file}: not saved, because the text has errors\nmcpguard: {file}: line 13: not TOML")
    assert file.read_text("utf-8") == BY_HAND


@pytest.mark.posix  # a terminal
@pytest.mark.parametrize("typed", [b"n\n", b"\x04", b"x\nn\n"])
def test_edit_asks_what_to_do_with_a_broken_text(tmp_path: Path, file: Path, drafts: Path, typed: bytes) -> None:
    status, said = on_terminal(tmp_path, "policy", "edit", typed=typed, VISUAL=editor(drafts, SPOIL))
    assert (status, file.read_text("utf-8"), list(tmp_path.iterdir())) == (78, BY_HAND, [file])
    assert "line 13: not TOML" in said
    assert "Edit again, or else discard the changes? [Y/n]:" in said
    assert f"{file}: the changes were discarded" in said.replace("\n", "")


@pytest.mark.posix  # a terminal
def test_edit_again_opens_the_same_text(tmp_path: Path, file: Path, drafts: Path) -> None:
    both = f"if 'report\"' in text:\n    {SPOIL}\nelse:\n    {MEND}\n    {CHANGE}"
    status, said = on_terminal(tmp_path, "policy", "edit", typed=b"\n", VISUAL=editor(drafts, both))
    assert (status, file.read_text("utf-8")) == (0, CHANGED)
    assert said.endswith(f"{file}: OK, 2 rules\n")


def test_edit_mends_a_file_that_is_broken(tmp_path: Path, file: Path, drafts: Path) -> None:
    file.write_text(SPOILED, "utf-8", newline="\n")
    assert mcpguard(tmp_path, "policy", "edit", VISUAL=editor(drafts)).returncode == 78
    assert mcpguard(tmp_path, "policy", "edit", VISUAL=editor(drafts, MEND)).stdout == f"{file}: OK, 2 rules\n"
    assert file.read_text("utf-8") == BY_HAND


OTHERS = "not saved: another process has changed it while you edited"


@pytest.mark.parametrize(
    ("change", "why", "left"),
    [
        ("open({!r}, 'a').write('# other\\n')", OTHERS, BY_HAND + "# other\n"),
        ("os.remove({!r})", OTHERS, None),
        pytest.param(
            "os.chmod(os.path.dirname({!r}), 0o500)", "cannot be written: Permission denied", BY_HAND, marks=pytest.mark.posix
        ),
    ],
    ids=["changed", "removed", "read-only"],
)
def test_edit_keeps_a_text_that_it_cannot_save(
    tmp_path: Path, file: Path, drafts: Path, change: str, why: str, left: str | None
) -> None:
    done = edit(tmp_path, editor(drafts, CHANGE, change.format(str(file))), *BOUND, TMPDIR=str(drafts))
    tmp_path.chmod(0o700)
    (kept,) = drafts.glob("*/policy.toml")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"mcpguard: {file}: {why}\nhint: look for your text in {kept}\n"
    assert kept.read_text("utf-8") == CHANGED
    assert (file.read_text("utf-8") if file.exists() else None) == left


@pytest.mark.posix  # modes
def test_edit_opens_no_editor_for_a_file_that_it_could_not_save(tmp_path: Path, file: Path) -> None:
    file.chmod(0o444)
    done = edit(tmp_path, f"touch {tmp_path / 'opened'}", *BOUND)
    assert (done.returncode, done.stdout) == (1, "")
    assert "cannot be written: Permission denied" in done.stderr
    assert list(tmp_path.iterdir()) == [file]


def test_edit_begins_with_the_starter_policy(tmp_path: Path, drafts: Path) -> None:
    output(tmp_path, "policy", "edit", VISUAL="", EDITOR=editor(drafts))
    assert (tmp_path / "policy.toml").read_text("utf-8") == STARTER


@pytest.mark.parametrize(
    ("editor", "said"),
    [
        ("no-such-editor", "hint: set VISUAL or EDITOR to the editor's command"),
        ('"', "mcpguard: VISUAL or EDITOR is not a command: No closing quotation\nhint: close each quotation mark"),
    ],
    ids=["missing", "not a command"],
)
def test_edit_says_how_to_name_an_editor(tmp_path: Path, file: Path, editor: str, said: str) -> None:
    assert complaint(tmp_path, "policy", "edit", status=1, VISUAL="", EDITOR=editor).endswith(f"{said}\n")
