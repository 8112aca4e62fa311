import stat
from pathlib import Path

import pytest

from mcpguard.clients.records import NAME, Record, load, save
from mcpguard.errors import McpguardError

ONE, TWO = Record("/a.json", ("mcpServers", "crm")), Record("/b.json", ())


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "home" / "state"


@pytest.mark.posix
def test_only_this_account_can_read_the_notes_and_their_folder(state: Path) -> None:
    save(state, added={ONE})
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (state.parent, state, state / NAME)]
    assert modes == [0o700, 0o700, 0o600]


def test_notes_are_added_and_dropped_beside_those_of_another_command(state: Path) -> None:
    save(state, added={ONE})
    save(state, added={TWO})
    assert load(state) == {ONE, TWO}
    save(state, dropped={ONE})
    assert load(state) == {TWO}


def test_nothing_is_written_without_a_new_note(state: Path) -> None:
    save(state, dropped={ONE})
    assert not state.exists()


@pytest.mark.parametrize("data", [b"", b"\xff", b"{", b"1", b'[{"file": "/a.json"}]', b"[1]", b"[" * 100_000])
def test_a_damaged_file_of_notes_has_none_and_is_replaced(state: Path, data: bytes) -> None:
    state.mkdir(parents=True)
    (state / NAME).write_bytes(data)
    assert load(state) == set()
    save(state, added={ONE})
    assert load(state) == {ONE}


@pytest.mark.posix
def test_a_file_in_place_of_the_folder_is_reported(state: Path) -> None:
    state.parent.write_bytes(b"")
    assert load(state) == set()
    with pytest.raises(McpguardError, match="cannot be written: Not a directory"):
        save(state, added={ONE})
