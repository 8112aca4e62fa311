import json

import pytest

from mcpguard.documents.jsonc import parse
from mcpguard.documents.model import Unreadable, plain
from tests.documents.jsonc_verdicts import FILE


@pytest.mark.parametrize(("is_strict", "at"), [(True, 0), (False, 2)])
def test_it_accepts_and_refuses_the_documents_that_microsofts_parser_accepts_and_refuses(is_strict: bool, at: int) -> None:
    different = []
    for line in FILE.read_bytes().splitlines():
        text, verdicts, *value = json.loads(line, parse_int=float)
        try:
            found = [plain(parse(text, is_strict=is_strict))]
        except Unreadable:
            found = []
        if found != (value if verdicts[at] == "1" else []):
            different.append((text, verdicts, value, found))
    assert different == []


def test_half_of_the_recorded_documents_are_valid_and_each_dialect_has_some_of_its_own() -> None:
    verdicts = [json.loads(line)[1] for line in FILE.read_bytes().splitlines()]
    assert len(verdicts) > 2500
    assert set(verdicts) == {"000", "001", "011", "111"}
    assert 0.4 < verdicts.count("000") / len(verdicts) < 0.6
    assert min(verdicts.count(verdict) for verdict in ("001", "011", "111")) > 100


@pytest.mark.parametrize(
    ("text", "message", "line", "column"),
    [
        ("", "expected a value, but the file ends", 1, 1),
        ('{"a": 1,\n  // c\n "b": 2}', "this client does not allow comments", 2, 3),
        ('{\r\n  "a": [1, 2,]\r\n}', "this client does not allow a comma before ]", 2, 14),
        ('{\r"a" 1}', "expected a colon", 2, 5),
        ('{"a": "b\n"}', "this string has no end, a wrong escape or a control character", 1, 7),
        ("{'a': 1}", "expected a string", 1, 2),
        ("[1 2]", "expected a comma or ]", 1, 4),
        ('{"a": 1', "expected a comma or }, but the file ends", 1, 8),
        ("{} {}", "expected the end of the file", 1, 4),
    ],
)
def test_an_error_has_a_message_a_line_and_a_column(text: str, message: str, line: int, column: int) -> None:
    with pytest.raises(Unreadable) as caught:
        parse(text, is_strict=True)
    assert (caught.value.message, caught.value.line, caught.value.column) == (message, line, column)


def test_a_comment_without_an_end_is_named() -> None:
    with pytest.raises(Unreadable, match="the comment has no end"):
        parse("{} /* ", is_strict=False)


def test_a_missing_quotation_mark_after_a_long_text_is_found_at_once() -> None:
    with pytest.raises(Unreadable, match="this string has no end"):  # with a backtracking pattern it takes 2^5000 steps
        parse('{"' + "a" * 5000, is_strict=True)
