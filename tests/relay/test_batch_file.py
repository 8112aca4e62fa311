"""How a batch file is started; `tests/windows` has what arrives there."""

import pytest

from mcpguard.relay import batch_file


@pytest.mark.parametrize("bad", ["a\nb", "a\rb", "\0", "x" * 8200])
def test_what_cmd_cannot_pass_on_is_an_error(bad: str) -> None:
    with pytest.raises(ValueError, match=r"cmd\.exe, which runs batch files"):
        batch_file.command_line("C:\\npx.cmd", [bad])


@pytest.mark.parametrize(("program", "is_one"), [("npx.CMD", True), ("a.bat. ", True), ("a.exe", False), ("cmd", False)])
def test_a_batch_file_is_known_by_its_ending(program: str, is_one: bool) -> None:
    assert batch_file.is_batch_file(program) == is_one


def test_options_that_a_batch_file_compares_are_not_quoted() -> None:
    line = batch_file.command_line("C:\\npx.cmd", ["-y", "@acme/crm-server", "a b"])
    assert line == 'cmd.exe /d /e:on /v:off /s /c ""C:\\npx.cmd" -y @acme/crm-server "a b""'
