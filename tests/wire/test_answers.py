"""Answers: what the server's frames say of requests, however they are cut, and in bounded memory."""

import itertools
import json
import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcpguard.wire import answers
from mcpguard.wire.answers import MAX_PARSED_ANSWER_BYTES, Answer, AnswerLines, Line, RetryInput
from tests.build import steps
from tests.wire.test_frames import CORPUS, LONG


def read_answer(frame: bytes, *, whole: bool = True) -> Answer | None:
    """The one answer in a line, if there is one."""
    found = answers.read(Line(frame, whole))
    assert len(found) < 2
    return found[0] if found else None


def read_batch(frame: bytes) -> list[Answer]:
    return answers.read(Line(frame))


def read(message: object) -> Answer | None:
    return read_answer(json.dumps(message).encode())


def orders(request_id: object, **body: object) -> list[bytes]:
    """One response in the orders that SDKs write, and one that none does."""
    head: dict[str, object] = {"jsonrpc": "2.0", "id": request_id}
    odd = {"id": request_id} | body | {"jsonrpc": "2.0"}
    return [
        json.dumps(message, separators=between).encode()
        for message in (head | body, body | head, odd)
        for between in ((",", ":"), (" , ", " : "))
    ]


@pytest.mark.parametrize("at", range(6))
@pytest.mark.parametrize(
    ("body", "outcome"),
    [
        ({"result": {}}, "ok"),
        ({"result": None}, "ok"),
        ({"result": {"content": []}}, "ok"),
        ({"result": {"content": [], "isError": False}}, "ok"),
        ({"result": {"content": [], "isError": True}}, "tool_error"),
        ({"result": {"isError": True, "content": []}}, "tool_error"),
        ({"result": {"isError": 1}}, "ok"),
        ({"result": {"content": [{"isError": True}]}}, "ok"),
        ({"result": {"content": [{"text": '"isError": true'}]}}, "ok"),
        ({"result": {"structuredContent": {"isError": True, "resultType": "input_required"}}}, "ok"),
        ({"result": [{"isError": True}]}, "ok"),
        ({"error": {"code": 1, "message": "m"}}, "rpc_error"),
        ({"error": {"code": 1, "message": "m", "data": {"result": {}}}}, "rpc_error"),
        ({"result": {"text": ',"jsonrpc":"2.0","id":9}'}}, "ok"),
    ],
)
def test_an_outcome_is_read_with_keys_in_any_order(body: dict[str, object], outcome: str, at: int) -> None:
    assert read_answer(orders(7, **body)[at]) == Answer("7", outcome)


@pytest.mark.parametrize("request_id", [0, -1, 12345678901234567890, "a", "", "a b", "é", 'q"\\', "\x7f"])
@pytest.mark.parametrize("at", range(6))
def test_an_id_is_read_as_the_client_wrote_it(request_id: object, at: int) -> None:
    assert read_answer(orders(request_id, result={})[at]) == Answer(json.dumps(request_id), "ok")
    raw = orders(request_id, result={})[at].decode()
    unescaped = json.dumps(json.loads(raw), ensure_ascii=False).encode()
    assert read_answer(unescaped) == Answer(json.dumps(request_id), "ok")


@pytest.mark.parametrize("order", ["id result", "result id"])
def test_an_id_that_the_server_wrote_as_a_double_is_the_integer(order: str) -> None:
    for result, outcome in (({}, "ok"), (LARGE, "unparsed")):
        members = {"id": 7.0, "result": result, "jsonrpc": "2.0"}
        line = json.dumps({key: members[key] for key in (*order.split(), "jsonrpc")}).encode() + b"\n"
        assert (read_large(line) if result else [read_answer(line)]) == [Answer("7", outcome)]


@pytest.mark.parametrize(
    "line",
    [
        b'{"jsonrpc":"2.0","id":7,"method":"sampling/createMessage","params":{}}',
        b'{"jsonrpc":"2.0","method":"roots/list","id":7}',
        b'{"method":"x","id":7}',
        b'{"id":7,"params":{},"method":"x"}',
        b'{"jsonrpc":"2.0","method":"notifications/progress","params":{"id":7}}',
        b'{"jsonrpc":"2.0","id":null,"error":{"code":1,"message":"m"}}',
        b'{"jsonrpc":"2.0","id":1.5,"result":{}}',
        b'{"jsonrpc":"2.0","id":true,"result":{}}',
        b'{"jsonrpc":"2.0","result":{}}',
        b'"id"',
        b'log: "id" is 7',
        b'{"id":' + LONG.encode() + b',"result":{}}',
        b"",
        b"\n",
    ],
)
def test_requests_notifications_and_invalid_lines_are_not_answers(line: bytes) -> None:
    assert read_answer(line) is None


def test_every_answer_of_a_batch_is_read() -> None:
    batch = [{"id": 1, "result": {}}, {"method": "ping", "id": 5}, 7, {"id": "a", "result": {"isError": True}}]
    found = read_batch(json.dumps([*batch, {"id": 2, "error": {"code": 1}}]).encode())
    assert found == [Answer("1", "ok"), Answer('"a"', "tool_error"), Answer("2", "rpc_error")]
    assert read_batch(b'[{"id":1,"result":{}}') == read_batch(b"[" * 100_000) == read_batch(b"[]") == []


ID_KEYS = [r"\u0069d", r"i\u0064", r"\u0069\u0064"]


@pytest.mark.parametrize("key", ID_KEYS)
@pytest.mark.parametrize("order", ["id first", "id last"])
def test_an_answer_is_found_however_the_key_of_its_id_is_spelled(key: str, order: str) -> None:
    for body, outcome in (('"result":{"isE\\u0072ror":true}', "tool_error"), ('"\\u0065rror":{"code":1}', "rpc_error")):
        frame = f'{{"{key}":7,{body}}}\n' if order == "id first" else f'{{{body},"{key}":7}}\n'
        lines = AnswerLines().feed(b'{"method":"x"}\n' + frame.encode() + b'{"method":"x"}\n')
        assert [answer for line in lines for answer in answers.read(line)] == [Answer("7", outcome)]
    large = json.dumps(LARGE)
    frame = f'{{"{key}":7,"result":{large}}}\n' if order == "id first" else f'{{"result":{large},"{key}":7}}\n'
    assert read_large(frame.encode()) == [Answer("7", "unparsed")]


def test_text_that_only_looks_like_an_escape_stays_text() -> None:
    for text in (r"\\u0069d", r"\\\\u0069d", r"\u00e9 \u003c \u0060 \\ \""):
        assert read_answer(b'{"id":7,"result":{"text":"%b","isError":true}}' % text.encode()) == Answer("7", "tool_error")
    assert read_answer(rb'{"\\u0069d":7,"result":{}}') is None


def read_large(frame: bytes) -> list[Answer | None]:
    """What is read of a line of a large answer, which comes in chunks."""
    reader = AnswerLines()
    found = [one for start in range(0, len(frame), 65_536) for one in reader.feed(frame[start : start + 65_536])]
    assert [one.whole for one in found] == [False]
    return [read_answer(one.frame, whole=one.whole) for one in found]


ROWS = [{"name": "a row", "id": 8}] * 50
LARGE = {"first": ROWS, "text": ',"id":8}' * (MAX_PARSED_ANSWER_BYTES // 8), "last": ROWS}


@pytest.mark.parametrize("escaped", [True, False])
@pytest.mark.parametrize("request_id", [7, -1, 10**30, "a", "", "é", 'q"\\', "\x7f", "\n"])
@pytest.mark.parametrize("order", ["id result", *map(" ".join, itertools.permutations(("jsonrpc", "id", "result")))])
def test_any_id_of_a_large_answer_is_read_in_any_order(order: str, request_id: object, escaped: bool) -> None:
    members = {"jsonrpc": "2.0", "id": request_id, "result": LARGE}
    frame = json.dumps({key: members[key] for key in order.split()}, ensure_ascii=escaped).encode() + b"\n"
    assert read_large(frame) == [Answer(json.dumps(request_id), "unparsed")]


@pytest.mark.parametrize("order", [*map(" ".join, itertools.permutations(("id", "result", "error")))])
def test_an_error_or_a_result_that_is_null_is_none(order: str) -> None:
    for members, outcome in (
        ({"id": 7, "result": LARGE, "error": None}, "ok"),
        ({"id": 7, "result": None, "error": LARGE}, "rpc_error"),
    ):
        frame = json.dumps({key: members[key] for key in order.split()} | {"jsonrpc": "2.0"}).encode() + b"\n"
        version_first = b'{"jsonrpc": "2.0", ' + frame.replace(b', "jsonrpc": "2.0"', b"")[1:]
        for line in (frame, version_first):
            assert read_answer(line) == Answer("7", outcome)
            assert read_large(line) == [Answer("7", outcome.replace("ok", "unparsed"))]


def test_a_large_line_without_an_id_in_sight_is_no_answer() -> None:
    for line in (b'{"result":%b}', b'{"id":null,"error":%b}', b'{"id":7,"params":%b}', b'{"id":"\xff","result":%b}', b"[%b]"):
        assert read_large(line % json.dumps(LARGE).encode() + b"\n") == [None]


def test_an_input_required_result_states_what_the_retry_has_to_carry() -> None:
    asks = {"resultType": "input_required", "requestState": "s", "inputRequests": {"who": {}, "why": {}}}
    assert read({"id": 1, "result": asks}) == Answer("1", "ok", RetryInput("s", frozenset({"who", "why"})))
    for line in orders(1, result={"resultType": "input_required"}):
        assert read_answer(line) == Answer("1", "ok", RetryInput(None, frozenset()))
    odd = {"resultType": "input_required", "requestState": 5, "inputRequests": ["who"]}
    assert read({"id": 1, "result": odd}) == Answer("1", "ok", RetryInput(None, frozenset()))


@pytest.mark.parametrize("file", sorted({entry["file"] for entry in CORPUS}))
def test_answers_in_recorded_server_traffic_are_read_as_a_parser_reads_them(file: str) -> None:
    lines = [entry["frame"].encode() for entry in CORPUS if entry["file"] == file and entry["from"] == "server"]
    assert lines
    for line in lines:
        message: dict[str, Any] = json.loads(line)
        answer = read_answer(line)
        if "method" in message:
            assert answer is None
            continue
        assert answer is not None
        assert json.loads(answer.id) == message["id"]
        result = message.get("result", {})
        wanted = "rpc_error" if "error" in message else "tool_error" if result.get("isError") else "ok"
        assert answer.outcome == wanted
        assert (answer.wanted is None) == (result.get("resultType") != "input_required")


def feed_cut(stream: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({min(cut, len(stream)) for cut in cuts} | {0, len(stream)})
    reader = AnswerLines()
    found = [line for start, end in itertools.pairwise(places) for line in reader.feed(stream[start:end])]
    assert all(line.whole for line in found)
    assert reader.is_between_frames == stream.endswith(b"\n") or not stream
    return [line.frame for line in found]


answers_and_others = st.lists(
    st.sampled_from(
        [*orders(1, result={"x": "y"}), *orders("a", error={"code": 1}), b'{"method":"n"}', b'{"method":"r","id":4}', b"x", b""]
    ),
    max_size=6,
)


@given(answers_and_others, st.booleans(), st.lists(st.integers(0, 400), max_size=10))
def test_the_chunks_of_a_stream_make_no_difference_to_its_answers(lines: list[bytes], ended: bool, cuts: list[int]) -> None:
    stream = b"\n".join(lines) + (b"\n" if ended else b"")
    complete = lines if ended else lines[:-1]
    found = [answer for line in feed_cut(stream, cuts) if (answer := read_answer(line))]
    assert found == [answer for answer in map(read_answer, complete) if answer]


def test_short_notifications_are_looked_through_at_once() -> None:
    lines = AnswerLines()
    assert steps(lambda: lines.feed(b'{"jsonrpc":"2.0","method":"n"}\n' * 1000)) < 20


def test_a_part_of_an_answer_that_begins_as_a_notification_does_belongs_to_the_answer() -> None:
    line = b'{"jsonrpc":"2.0","id":7,"result":{"seen":[{"method":"n"}],"isError":true}}\n'
    (frame,) = feed_cut(line, [line.index(b'{"method"')])
    assert read_answer(frame) == Answer("7", "tool_error")


@pytest.mark.parametrize("first", [1, 10, 25, 60, 65_536])
@pytest.mark.parametrize(("at", "wanted"), [(0, Answer("7", "unparsed")), (2, Answer("7", "unparsed"))])
def test_a_frame_too_large_to_parse_is_an_answer_however_its_first_bytes_were_cut(at: int, wanted: Answer, first: int) -> None:
    line = orders(7, result={"text": "x" * (MAX_PARSED_ANSWER_BYTES + 500_000)})[at] + b"\n"
    reader = AnswerLines()
    chunks = [line[:first], *(line[start : start + 65_536] for start in range(first, len(line), 65_536))]
    found = [found for chunk in chunks for found in reader.feed(chunk)]
    assert [read_answer(one.frame, whole=one.whole) for one in found] == [wanted]
    assert reader.is_between_frames


@pytest.mark.parametrize("more", [0, 1])
def test_a_line_over_the_maximum_is_kept_as_its_two_ends(more: int) -> None:
    line = b'{"id":7,"result":"' + b"x" * (MAX_PARSED_ANSWER_BYTES - 20 + more) + b'"}\n'
    reader = AnswerLines()
    found = [one for start in range(0, len(line), 1000) for one in reader.feed(line[start : start + 1000])]
    assert [(one.whole, one.frame == line[:-1]) for one in found] == [(not more, not more)]


@pytest.mark.parametrize("start", [b'{"jsonrpc":"2.0","id":7,"result":"', b'{"method":"notifications/message","params":"'])
def test_an_endless_frame_takes_bounded_memory(start: bytes) -> None:
    reader = AnswerLines()
    tracemalloc.start()
    try:
        reader.feed(start)
        for _ in range(500):
            assert reader.feed(bytes([120]) * 65_536) == []
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 * MAX_PARSED_ANSWER_BYTES
    assert not reader.is_between_frames


@pytest.mark.parametrize(
    ("chunk", "whole"),
    [
        (b'{"jsonrpc":"2.0","id":7,"result":{}}', True),
        (b'{"jsonrpc":"2.0","id":7,"result":{"text":"a }', False),
        (b'{"jsonrpc":"2.0","id":7,"res', False),
        (b'{"jsonrpc":"2.0","id":7,"result":' + b"[" * 100_000, False),
        (b'{"jsonrpc":"2.0","id":7,"result":"' + b"x" * MAX_PARSED_ANSWER_BYTES + b'"}', False),
        (b'{"jsonrpc":"2.0","id":7,"result":{}}\n', False),
        (b"", False),
    ],
)
def test_an_unterminated_last_line_is_an_answer_only_if_it_is_complete(chunk: bytes, whole: bool) -> None:
    lines = AnswerLines()
    lines.feed(chunk)
    assert [line.frame for line in lines.last()] == ([chunk] if whole else [])
    assert lines.last() == []
