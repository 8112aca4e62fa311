"""Frames: a line that strict parsing understands passes unchanged, and all others are refused."""

import itertools
import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcpguard.wire import frames
from mcpguard.wire.frames import INVALID_PARAMS, INVALID_REQUEST, PARSE_ERROR, Frame, MessageReader, Refusal, parse
from tests.build import TESTS

LONG = "9" * 5000
"""More digits than Python converts."""


def one(line: bytes | str) -> Frame | Refusal:
    (message,) = parse(line.encode() if isinstance(line, str) else line)
    return message


def frame(line: bytes | str) -> Frame:
    message = one(line)
    assert isinstance(message, Frame)
    return message


def refusal(line: bytes | str) -> Refusal:
    message = one(line)
    assert isinstance(message, Refusal)
    return message


# What passes

scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3), max_leaves=8
)
ids = st.integers() | st.text(max_size=8)
names = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)
others = st.dictionaries(st.integers(0, 9).map("x{}".format), values, max_size=2)


@st.composite
def messages(draw: st.DrawFn) -> dict[str, Any]:
    kind = draw(st.sampled_from(["call", "request", "notification", "response"]))
    message: dict[str, Any] = {"jsonrpc": "2.0"}
    if kind != "notification":
        message["id"] = draw(ids if kind != "response" else scalars)
    if kind == "call":
        arguments = draw(st.dictionaries(st.text(max_size=4), values, max_size=3))
        message |= {"method": "tools/call", "params": {"name": draw(names), "arguments": arguments, **draw(others)}}
    elif kind == "response":
        message |= draw(st.sampled_from([{}, {"method": None}])) | {draw(st.sampled_from(["result", "error"])): draw(values)}
    else:
        message |= {"method": "other/" + draw(names)} | draw(st.just({}) | st.fixed_dictionaries({"params": others | scalars}))
    return message | draw(others)


@st.composite
def written(draw: st.DrawFn, message: object) -> str:
    """A message in one of the spellings that JSON allows."""
    between = draw(st.sampled_from([(",", ":"), (", ", ": "), ("\r,\t", " :\r")]))
    text = json.dumps(message, ensure_ascii=draw(st.booleans()), separators=between)
    return draw(st.sampled_from(["", " ", "\r", "\t "])) + text + draw(st.sampled_from(["", "\r", " \r "]))


def substituted(text: str) -> str:
    """The line with its line separators replaced, as the manual states."""
    text = text.replace("\r", " ")
    for char in "\u0085\u2028\u2029":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return text


@given(st.data(), messages())
def test_a_valid_message_passes_unchanged_except_for_line_separators(data: Any, message: dict[str, Any]) -> None:
    text = data.draw(written(message))
    passed = frame(text)
    assert passed.raw == substituted(text).encode()
    assert json.loads(passed.raw) == message
    assert len(passed.raw.decode().splitlines()) == 1 or any(char in text for char in "\x0b\x0c\x1c\x1d\x1e")
    assert passed.method == message.get("method")
    assert passed.params == message.get("params")
    assert passed.is_call == (message.get("method") == "tools/call")
    if passed.method is not None and "id" in message:
        assert passed.id is not None
        assert json.loads(passed.id) == message["id"]
    else:
        assert passed.id is None


@given(st.data(), st.lists(messages(), min_size=1, max_size=4))
def test_each_member_of_a_batch_passes_as_a_message_of_its_own(data: Any, members: list[dict[str, Any]]) -> None:
    texts = [data.draw(written(member)) for member in members]
    line = data.draw(st.sampled_from(["[", " [\r"])) + ",".join(texts) + "]"
    parsed = parse(line.encode())
    found = [message.raw for message in parsed if isinstance(message, Frame)]
    assert found == [substituted(text.strip(" \t\r")).encode() for text in texts]


@given(st.text())
def test_escaping_line_separators_changes_no_value_and_leaves_no_line_break(text: str) -> None:
    raw = frames.escape_line_separators(json.dumps([text], ensure_ascii=False).encode() + b"\r")
    assert json.loads(raw) == [text]
    assert not {"\r", "\n", "\u0085", "\u2028", "\u2029"} & set(raw.decode())


CORPUS = [
    json.loads(line) | {"file": path.name}
    for path in sorted((TESTS / "corpus").glob("*.jsonl"))
    for line in path.read_text().splitlines()
]


@pytest.mark.parametrize("file", sorted({entry["file"] for entry in CORPUS}))
def test_recorded_client_traffic_passes_unchanged(file: str) -> None:
    sent = [entry["frame"] for entry in CORPUS if entry["file"] == file and entry["from"] == "client"]
    assert sent
    assert [frame(line).raw for line in sent] == [substituted(line).encode() for line in sent]


@pytest.mark.parametrize(
    ("line", "method", "request_id"),
    [
        ('{"method":"ping","id":"a"}', "ping", '"a"'),
        ('{"method":"ping","id":"é"}', "ping", '"\\u00e9"'),
        ('{"method":"ping","id":"\\ud800"}', "ping", '"\\ud800"'),
        ('{"method":"ping","id":""}', "ping", '""'),
        ('{"method":"ping","id":-0}', "ping", "0"),
        (f'{{"method":"ping","id":{LONG}}}', "ping", LONG),
        ('{"method":"ping"}', "ping", None),
        ('{"method":"ping","id":1,"result":{},"error":null}', "ping", "1"),
        ('{"id":1,"result":{}}', None, None),
        ('{"id":1,"error":{"code":1,"message":"no"}}', None, None),
        ('{"id":1.5,"result":{}}', None, None),
        ('{"id":null,"method":null,"result":{}}', None, None),
        ("{}", None, None),
        ('{"method":"a","params":[1,[2]]}', "a", None),
        ('{"method":"a","params":7}', "a", None),
        ('{"method":"tools/call\\u0020","id":1}', "tools/call ", "1"),
        ('{"method":"Tools/Call","id":1}', "Tools/Call", "1"),
    ],
)
def test_messages_other_than_calls_pass_with_their_method_and_id(line: str, method: str | None, request_id: str | None) -> None:
    passed = frame(line)
    assert (passed.method, passed.id, passed.raw) == (method, request_id, line.encode())
    assert not passed.is_call


@pytest.mark.parametrize(
    "inside",
    ['{"a":1,"a":2}', '{"name":"x","NAME":"y","\\u0000":1}', '{"x":"\\ud800"}', f'{{"x":{LONG}}}', '{"x":1e999}', "[[[]]]"],
)
@pytest.mark.parametrize("place", ["arguments", "inputResponses", "_meta", "task", "other"])
def test_any_json_is_allowed_inside_arguments_results_and_errors(place: str, inside: str) -> None:
    line = f'{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{{"name":"x","{place}":{inside}}}}}'
    assert frame(line).raw == line.encode()
    response = f'{{"id":1,"result":{inside}}}'
    assert frame(response).raw == response.encode()


PING = b'{"id":1,"method":"ping"}'
MARK = b"\xef\xbb\xbf"


@pytest.mark.parametrize("first", [[MARK + PING], [MARK, PING], [MARK + b"\r", PING]])
def test_a_byte_order_mark_before_the_first_line_is_dropped(first: list[bytes]) -> None:
    assert MessageReader().read(first) == [frame(PING)]


@pytest.mark.parametrize("lines", [[PING, MARK + PING], [MARK + PING, MARK + PING], [Refusal(PARSE_ERROR, "x"), MARK + PING]])
def test_a_later_byte_order_mark_is_refused(lines: list[bytes | Refusal]) -> None:
    reader = MessageReader()
    first, second = (reader.read([line]) for line in lines)
    assert (len(first), second) == (1, [Refusal(PARSE_ERROR, "not valid JSON")])
    assert reader.read([]) == []


def test_a_second_byte_order_mark_before_the_first_line_is_refused() -> None:
    assert MessageReader().read([MARK + MARK + PING]) == [Refusal(PARSE_ERROR, "not valid JSON")]


@pytest.mark.parametrize(("opened", "closed"), [("[", "]"), ('{"x":', "}")])
def test_nesting_over_512_is_refused(opened: str, closed: str) -> None:
    def nested(depth: int) -> str:
        rest = depth - 3  # the message, its params and its arguments
        return call(f'{{"name":"[{{[","arguments":{{"\\"[":{opened * rest}0{closed * rest}}}}}')

    assert isinstance(one(nested(frames.MAX_DEPTH)), Frame)
    deeper = refusal(nested(frames.MAX_DEPTH + 1))
    assert (deeper.code, deeper.id, deeper.answered) == (PARSE_ERROR, "null", True)


def test_brackets_in_strings_or_side_by_side_do_not_count_as_nesting() -> None:
    side_by_side = ",".join(["[]"] * 2000)
    line = f'{{"id":1,"method":"a","params":{{"x":"{"[" * 2000}\\"[","y":[{side_by_side}]}}}}'
    assert frame(line).raw == line.encode()


# What is refused


@pytest.mark.parametrize(
    "key", ["NAME", "na_me", "-name", "request_state", "input-responses", "_META", "__meta", "_me-ta", "meta"]
)
def test_a_key_in_params_that_differs_from_a_reserved_key_only_by_case_or_separators_is_refused(key: str) -> None:
    assert refusal(f'{{"id":1,"method":"ping","params":{{"{key}":1}}}}').code == INVALID_PARAMS
    assert refusal(f'{{"id":1,"method":"ping","params":{{"_meta":{{}},"{key}":1}}}}').code == INVALID_PARAMS


@pytest.mark.parametrize("key", ["__proto__", "$serde_json::private::RawValue", "$serde_json::private::Number"])
def test_keys_with_a_special_meaning_for_some_parsers_are_refused_in_envelope_and_params(key: str) -> None:
    assert refusal(f'{{"id":1,"{key}":"{{}}","method":"ping"}}').code == INVALID_REQUEST
    assert refusal(f'{{"id":1,"method":"ping","params":{{"{key}":"{{}}"}}}}').code == INVALID_PARAMS
    assert frame(f'{{"id":1,"method":"ping","params":{{"arguments":{{"{key}":"{{}}"}}}}}}').method == "ping"


def call(params: str) -> str:
    return f'{{"jsonrpc":"2.0","id":5,"method":"tools/call","params":{params}}}'


@pytest.mark.parametrize(
    "line",
    [
        *b"""json { {"a":1 {"a":1,} {'a':1} [1,2""".split(),
        b'{"method":"a"} {"method":"b"}',
        b'{"method":"a"}x',
        b'{"method":"a"}{"id":1,"method":"tools/call","params":{"name":"x"}}',
        b'\xef\xbb\xbf{"method":"a"}',
        *(b'{"method":"%b"}' % odd for odd in (b"\xff", b"\xed\xa0\x80", b"\xc0\x80", b"\x01", b"a\rb")),
        *(b'{"method":"a","x":%b}' % odd for odd in b"NaN Infinity -Infinity 01".split()),
        b"\x0b{}",
        "\u00a0{}".encode(),
        b"\xff\xfe{\x00}\x00",
        b'{"method":"a","x":' + LONG.encode(),
    ],
)
def test_a_line_that_is_not_strict_json_is_refused_with_a_null_id(line: bytes) -> None:
    got = refusal(line)
    assert (got.code, got.id, got.answered, got.tool) == (PARSE_ERROR, "null", True, None)


@pytest.mark.parametrize("line", ["1", '"tools/call"', "null", "true", "[]", "[ ]", LONG])
def test_json_that_is_not_a_message_is_an_invalid_request(line: str) -> None:
    got = refusal(line)
    assert (got.code, got.id, got.answered) == (INVALID_REQUEST, "null", True)


@pytest.mark.parametrize(
    ("line", "request_id"),
    [
        ('{"id":5,"method":"a","method":"tools/call"}', "5"),
        ('{"id":5,"method":"a","m\\u0065thod":"b"}', "5"),
        *((f'{{"id":5,"method":"a","{key}":{{}}}}', "5") for key in "Method METHOD JsonRPC Result ERROR ID paramſ".split()),
        ('{"id":5,"method":"a","param\\u017f":{}}', "5"),
        ('{"id":5,"method":"a","extra":1,"Extra":2}', "5"),
        ('{"id":5,"method":"a","ß":1,"SS":2}', "5"),
        ('{"id":5,"method":"a","x\\u0000":1}', "5"),
        ('{"id":5,"method":"a","method\\u0000":"tools/call"}', "5"),
        ('{"id":"é","method":7}', '"\\u00e9"'),
        *((f'{{"id":5,"method":{odd}}}', "5") for odd in r'["tools/call"] {} true "tools/call\u0000" "\u0000"'.split()),
        ('{"id":5,"id":6,"method":"a"}', "null"),
        ('{"id":5,"x":1,"x":2,"id":6,"method":"a"}', "null"),
        *((f'{{"id":{odd},"method":"a"}}', "null") for odd in "5.0 1e2 true null [1]".split()),
        ('{"id":{},"method":"tools/call","params":{"name":"x"}}', "null"),
        ('{"id":5,"Method":"tools/call","params":{"name":"x"}}', "5"),
        ('{"id":5,"method":null,"Result":2}', "5"),
    ],
)
def test_an_envelope_that_two_parsers_could_read_differently_is_an_invalid_request(line: str, request_id: str) -> None:
    got = refusal(line)
    assert (got.code, got.id, got.answered) == (INVALID_REQUEST, request_id, True)


@pytest.mark.parametrize(
    ("line", "request_id"),
    [
        ('{"jsonrpc":"2.0","id":5}', "5"),
        ('{"id":"é","method":null}', '"\\u00e9"'),
        ('{"id":5,"params":{"name":1,"name":2}}', "5"),
        ('{"id":null}', "null"),
        ('{"id":1.5}', "null"),
    ],
)
def test_an_object_with_an_id_but_without_method_result_and_error_is_answered(line: str, request_id: str) -> None:
    got = refusal(line)
    assert (got.code, got.id, got.answered) == (INVALID_REQUEST, request_id, True)
    assert refusal(f"[{line}]") == got


@pytest.mark.parametrize(
    "line",
    [
        '{"method":"tools/call","params":{"name":"x"}}',
        '{"method":7}',
        '{"method":"a\\u0000"}',
        '{"method":"a","method":"b"}',
        '{"method":"a","params":{"name":1,"Name":2}}',
        '{"id":1,"result":1,"result":2}',
        '{"id":1,"id":2,"result":1}',
        '{"id":1,"result":{},"x\\u0000":1}',
    ],
)
def test_refused_notifications_and_responses_are_not_answered(line: str) -> None:
    assert not refusal(line).answered


@pytest.mark.parametrize(
    "params",
    [
        *'null [] "x" {} {"name":7} {"name":null} {"name":["x"]}'.split(),
        '{"Name":"x"}',
        '{"name":"x","name":"y"}',
        '{"name":"x","n\\u0061me":"y"}',
        *(f'{{"name":"x","{key}":""}}' for key in "NAME Arguments _META Task requeststate inputreſponses".split()),
        '{"name":"x","a":1,"A":2}',
        '{"name":"x","a\\u0000":1}',
        '{"name":"x","name\\u0000":"y"}',
        *(f'{{"name":"{name}"}}' for name in r"x\u0000 \ud800 x\udfff \udc00\ud800".split()),
    ],
)
def test_params_that_two_parsers_could_read_differently_are_invalid_params(params: str) -> None:
    got = refusal(call(params))
    assert (got.code, got.id, got.answered) == (INVALID_PARAMS, "5", True)


def test_a_call_without_params_is_refused() -> None:
    assert refusal('{"id":5,"method":"tools/call"}').code == INVALID_PARAMS


def test_the_keys_in_params_of_every_method_are_checked() -> None:
    assert refusal('{"id":5,"method":"a","params":{"x":1,"X":2}}').code == INVALID_PARAMS
    assert isinstance(one('{"id":5,"method":"a","params":{"name":7}}'), Frame)


@pytest.mark.parametrize(
    ("last", "fault"), [("x", None), ("K5", "only by case|equal"), ("Params", "reserved key"), ("\\u0000", "U\\+0000")]
)
def test_every_one_of_many_keys_is_checked(last: str, fault: str | None) -> None:
    for many in (10, 10_000):
        line = '{"id":5,"method":"a",' + "".join(f'"k{n}":0,' for n in range(many)) + f'"{last}":0}}'
        got = one(line)
        assert (isinstance(got, Frame), getattr(got, "id", None)) == (fault is None, "5")
        assert fault is None or re.search(fault, refusal(line).message)


@pytest.mark.parametrize(
    ("line", "tool"),
    [
        (call('{"name":"x","name":"y"}'), "y"),
        (call('{"name":"x\\u0000"}'), "x\0"),
        (call('{"name":7}'), None),
        (call("[]"), None),
        ('{"method":"tools/call","params":{"name":"x"}}', "x"),
        ('{"id":1,"method":"a","Method":"tools/call","params":{"name":"x"}}', None),
    ],
)
def test_a_refused_call_has_its_tool_if_it_named_one(line: str, tool: str | None) -> None:
    assert refusal(line).tool == tool


@pytest.mark.parametrize("member", ['{"method":"a"}', f'{{"method":"a","params":[{"[]," * 100}[]]}}'], ids=["light", "heavy"])
def test_a_batch_of_more_than_1024_messages_is_refused_as_a_whole(member: str) -> None:
    told = [message.raw for message in parse(f"[{','.join([member] * 1024)}]".encode()) if isinstance(message, Frame)]
    assert told == [member.encode()] * 1024
    found = refusal(f"[{','.join([member] * 1025)}]")
    assert (found.code, found.id, found.answered) == (INVALID_REQUEST, "null", True)


def test_each_member_of_a_batch_is_checked_separately() -> None:
    good = '{"id":1,"method":"ping"}'
    bad = ["[]", f"[{good}]", "1", "null", '"x"']
    parsed = parse(f'[{good},{",".join(bad)},{{"id":2,"method":7}},{good}]'.encode())
    assert [message.raw for message in parsed if isinstance(message, Frame)] == [good.encode()] * 2
    refused = [message for message in parsed if isinstance(message, Refusal)]
    found = [(one.code, one.id, one.answered) for one in refused]
    assert found == [(INVALID_REQUEST, "null", True)] * 5 + [(INVALID_REQUEST, "2", True)]


def test_a_refusal_does_not_quote_the_line() -> None:
    secret = "SECRET"
    for line in (secret, f'{{"{secret}":1,"{secret}":2}}', call(f'{{"name":"{secret}","{secret}":1,"{secret}":2}}')):
        assert secret not in refusal(line).message


# Lines

LIMIT = 40
line_bytes = st.binary(max_size=60).map(lambda data: data.replace(b"\n", b"") or b" ")


@given(st.lists(line_bytes, max_size=8), st.booleans(), st.booleans(), st.lists(st.integers(0, 500), max_size=12))
def test_chunks_make_no_difference_to_the_lines(lines: list[bytes], ended: bool, one_by_one: bool, cuts: list[int]) -> None:
    stream = b"\n".join(lines) + (b"\n" if ended else b"")
    ends = {at + 1 for at, byte in enumerate(stream) if byte == ord("\n")} if one_by_one else set()
    places = sorted({min(cut, len(stream)) for cut in cuts} | ends | {0, len(stream)})
    splitter = frames.LineSplitter(LIMIT)
    found: list[bytes | Refusal] = []
    for start, end in itertools.pairwise(places):
        found += splitter.feed(stream[start:end])
    found += splitter.finish()
    expected = [line for line in lines if len(line) > LIMIT or line.strip(b" \t\r")]
    told = [None if isinstance(line, Refusal) else line for line in found]
    assert told == [None if len(line) > LIMIT else line for line in expected]
    assert all(line.code == PARSE_ERROR and line.id == "null" for line in found if isinstance(line, Refusal))


def test_a_line_one_byte_over_the_maximum_is_refused() -> None:
    splitter = frames.LineSplitter(4)
    assert splitter.feed(b"aaaa\naaaaa\nbb") == [b"aaaa", Refusal(PARSE_ERROR, "longer than 4 bytes")]
    assert splitter.feed(b"bb\ncc") == [b"bbbb"]
    assert splitter.feed(b"ccc\n") == [Refusal(PARSE_ERROR, "longer than 4 bytes")]
    assert splitter.feed(b"dddd\n") == [b"dddd"]
    assert splitter.feed(b"ddddd\n") == [Refusal(PARSE_ERROR, "longer than 4 bytes")]
    assert splitter.finish() == []
