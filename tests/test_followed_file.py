import os
import sys
import time
from pathlib import Path

import pytest

from mcpguard import files
from mcpguard.files import SETTLING_NS, FollowedFile


@pytest.mark.parametrize(("age_ns", "is_read"), [(SETTLING_NS, True), (SETTLING_NS + 1, False)])
def test_a_file_that_has_just_changed_is_read_again_because_two_changes_can_have_the_same_times(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, age_ns: int, *, is_read: bool
) -> None:
    path = tmp_path / "policy.toml"
    path.write_text("1")
    found = os.stat(path)  # noqa: PTH116 - what the file's `look` asks for
    if sys.platform == "win32":
        monkeypatch.setattr(files, "_changed_ns", lambda _: found.st_mtime_ns)
    monkeypatch.setattr(time, "time_ns", lambda: max(found.st_mtime_ns, found.st_ctime_ns) + age_ns)
    monkeypatch.setattr(os, "stat", lambda *_, **__: found)
    file = FollowedFile(path)
    assert file.look()
    path.write_text("2")
    assert file.look() is is_read
