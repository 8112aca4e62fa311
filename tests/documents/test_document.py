import sys

import pytest

from mcpguard.documents.document import Dialect, quoted, read
from mcpguard.documents.model import Unreadable, plain
from mcpguard.errors import installing

JSON, TOML, YAML = Dialect.JSON, Dialect.TOML, Dialect.YAML


def refusal(data: bytes, dialect: Dialect) -> Unreadable:
    with pytest.raises(Unreadable) as caught:
        read(data, dialect)
    assert "\n" not in caught.value.message
    return caught.value


@pytest.mark.parametrize("dialect", list(Dialect))
def test_a_file_that_is_not_utf8_raises_with_the_place_of_the_byte(dialect: Dialect) -> None:
    error = refusal(b"\xef\xbb\xbf{}\n\xc3\xa9\xff", dialect)
    assert (error.message, error.line, error.column) == ("the file is not UTF-8", 2, 2)


@pytest.mark.parametrize("dialect", list(Dialect))
@pytest.mark.parametrize("levels", [600, 100_000])
def test_a_file_that_is_nested_too_deeply_raises(dialect: Dialect, levels: int) -> None:
    error = refusal((b"x = " if dialect is TOML else b"") + b"[" * levels + b"]" * levels, dialect)
    assert error.message == "the file is nested too deeply"


@pytest.mark.parametrize(
    ("dialect", "text", "line", "column"),
    [
        (TOML, "a = 1\nb = \n", 2, 5),
        (TOML, "a = 1\na = 2\n", 2, 6),
        (TOML, "a = 'x", 1, 7),
        (TOML, "[a\n", 1, 3),
        (TOML, "a = 1\r\n[b]\r\n\r\nc = [1,\r\n 2", 5, 3),
        (TOML, "a = " + "1" * 5000, 0, 0),
        (YAML, "a: 1\nb: [\n", 3, 1),
        (YAML, "a: 1\n b: 2\n", 2, 3),
        (YAML, "a: 'x\n", 2, 1),
        (YAML, "a: \x01\n", 1, 4),
        (YAML, "a: 1\n---\nb: 2\n", 2, 1),
        (YAML, "a: *b\n", 1, 4),
        (YAML, "a:\n\t- b\n", 2, 1),
    ],
)
def test_a_damaged_file_raises_with_its_place(dialect: Dialect, text: str, line: int, column: int) -> None:
    error = refusal(text.encode(), dialect)
    assert (error.line, error.column) == (line, column)
    assert "(at " not in error.message


def test_the_message_about_several_yaml_documents_is_a_sentence() -> None:
    error = refusal(b"a: 1\n---\nb: 2\n", YAML)
    assert error.message == "expected a single document in the stream, but found another document"


def test_an_anchor_can_be_used_again_in_yaml() -> None:
    assert plain(read(b"a: &x [1]\nb: &x [2]\nc: d\n", YAML).root)["c"] == "d"


def test_an_empty_yaml_file_is_an_empty_object() -> None:
    assert plain(read(b"# nothing\n", YAML).root) == {}


def test_without_ruamel_yaml_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ruamel.yaml", None)
    error = refusal(b"a: 1", YAML)
    assert (error.line, error.column, error.hint) == (0, 0, installing("yaml"))
    assert "mcpguard-cli[yaml]" in error.message


@pytest.mark.parametrize("text", ["", 'a"b\\c', "é😀", "\x00\x1f\x7f\x85\u2028\ufeff", "C:\\new\\t\n"])
def test_a_quoted_text_is_read_alike_in_every_dialect(text: str) -> None:
    token = quoted(text)
    assert plain(read(token.encode(), JSON).root) == text
    assert plain(read(b"x = " + token.encode(), TOML).root) == {"x": text}
    assert plain(read(b"x: " + token.encode(), YAML).root) == {"x": text}
