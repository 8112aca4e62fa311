"""Calls of one form are parsed faster than others, into the same messages."""

import json
from collections.abc import Sequence

import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from mcpguard.wire import frames
from mcpguard.wire.form import Form
from mcpguard.wire.frames import Frame, MessageReader, Refusal, parse, read

FORMS = [
    '{"jsonrpc":"2.0","id":%s,"method":"tools/call","params":{"name":"x","arguments":%s,"_meta":%s}}',
    '{"method":"tools/call","params":{"_meta":%s,"name":"x","arguments":%s},"jsonrpc":"2.0","id":%s}',
    '{ "id" : %s , "params" : { "arguments" : %s, "name" : "x", "_meta":%s, "task" : { } } , "method" : "tools/call" }\r',
]
VALUES = [*'1 12 -3 true null "a" {} {"a":1} [] {"a":1,"a":2} 1e5 1.5'.split(), '"é\\""', '{"a":{"b":[1,{}]},"c":"}"}']
MARKS = [*'{}[],:"\\ 19ax\0', "\u2028", "\r", "\ud800", '"id":2,', '"params":{},', ',"name":"y"', "NaN", "1" * 5000]


def assert_read_as_one_by_one(lines: list[bytes | Refusal]) -> list[Frame | Refusal]:
    found = read(lines)
    reader = MessageReader()
    alone = [one for line in lines for one in reader.read([line])]
    expected: list[Frame | Refusal] = []
    for line in lines:
        expected += [line] if isinstance(line, Refusal) else parse(line)
    assert found == alone == expected
    assert repr(found) == repr(alone) == repr(expected)  # `True` equals 1
    return found


values = st.sampled_from(VALUES) | st.integers().map(str) | st.text().map(json.dumps)
names = st.sampled_from(['"x"', '"y"', '"x"', '"\\u00e9"', '"é"', '"\\u0000"', '"\\ud800"', '"a\\"b"', "1", "null", ""])


@st.composite
def lines(draw: st.DrawFn) -> list[bytes | Refusal]:
    """Calls of one form with different values. Some have a mark in the text, or lack a part of it."""
    form = draw(st.sampled_from(FORMS))
    found: list[bytes | Refusal] = []
    for _ in range(16):
        text = form.replace('"x"', draw(names)) % (draw(values), draw(values), draw(values))
        if draw(st.integers(0, 2)) == 2:
            at, end = draw(st.integers(0, len(text))), draw(st.integers(0, 3))
            text = text[:at] + draw(st.sampled_from(["", *MARKS])) + text[at + end :]
        found.append(text.encode(errors="surrogatepass"))
    return found


@given(lines())
def test_calls_of_one_form_are_read_as_one_by_one(lines: list[bytes | Refusal]) -> None:
    found = assert_read_as_one_by_one(lines)
    event(f"calls: {sum(isinstance(one, Frame) for one in found) // 4 * 4}")


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The lines that are parsed."""
    found: list[bytes] = []

    def noting(line: bytes) -> Sequence[Frame | Refusal]:
        found.append(line)
        return parse(line)

    monkeypatch.setattr(frames, "parse", noting)
    return found


@pytest.mark.parametrize("form", FORMS)
def test_calls_of_one_form_are_parsed_once(form: str, parsed: list[bytes]) -> None:
    calls: list[bytes | Refusal] = [(form % (at, '{"a":"b"}' if at % 2 else at, at)).encode() for at in range(40)]
    reader = MessageReader()
    assert len(reader.read(calls[:20])) == 20
    assert sum(len(reader.read([call])) for call in calls[20:]) == 20
    assert parsed == calls[:1]


def test_another_form_is_made_when_its_calls_repeat(parsed: list[bytes]) -> None:
    calls = [(FORMS[0] % (at, 1, 1)).encode() for at in range(20)]
    others = [call.replace(b'"_meta"', b'"task"') for call in calls]
    reader = MessageReader()
    for call in [*calls, *others]:
        assert len(reader.read([call])) == 1
    assert calls[2] not in parsed
    assert others[0] in parsed
    assert others[10] not in parsed


OTHERS: dict[str, bytes | Refusal] = {
    "refused before": Refusal(-1, "too long"),
    "no call": b'{"method":"ping","id":1}',
    "an invalid line": b"{",
    "not UTF-8": b"\xff",
    "long": (FORMS[0] % (1, json.dumps("x" * 600), 1)).encode(),
    "space before it": b" " + (FORMS[0] % (1, 1, 1)).encode(),
    "an escape in a key": (FORMS[0] % (1, 1, 1)).replace('"id"', '"\\u0069d"').encode(),
    "an escape in a key of params": (FORMS[0] % (1, 1, 1)).replace('"_meta"', '"\\u005fmeta"').encode(),
    "an id that is none": (FORMS[0] % ("true", 1, 1)).encode(),
    "an id that goes on": (FORMS[0] % ("12", 1, 1)).encode(),
    "a value that goes on": (FORMS[0] % (1, 12, 1)).encode(),
    "a value that is missing": (FORMS[0] % (1, "", 1)).encode(),
    "more after it": (FORMS[0] % (1, 1, 1)).encode() + b"{}",
    "another text": (FORMS[0] % (1, 1, 1)).replace('"_meta"', '"task"').encode(),
    "another name": (FORMS[0] % (1, 1, 1)).replace('"x"', '"y"').encode(),
    "a name that parsers read differently": (FORMS[0] % (1, 1, 1)).replace('"x"', '"y\\u0000"').encode(),
    "a name that is none": (FORMS[0] % (1, 1, 1)).replace('"x"', "1").encode(),
    "a name that is not ASCII": (FORMS[0] % (1, 1, 1)).replace('"x"', '"é"').encode(),
    "a line separator in a value": (FORMS[0] % (1, "[1,\r2]", 1)).encode(),
    "a batch": b"[%s]" % (FORMS[0] % (1, 1, 1)).encode(),
}


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
def test_other_lines_among_them_are_read_as_ever(other: bytes | Refusal) -> None:
    calls: list[bytes | Refusal] = [(FORMS[0] % (at, 1, 1)).encode() for at in range(15)]
    assert_read_as_one_by_one([*calls, other, *calls, other])
    assert_read_as_one_by_one([other, *calls, other, *calls])


def test_what_was_not_accepted_with_an_id_has_no_form() -> None:
    scan = json.JSONDecoder().raw_decode
    assert Form.of(" {}", {}, scan) is None
    assert Form.of('{"a":1}', {}, scan) is None
    assert Form.of("{}", {}, scan) is None
