import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcpguard.wire import frames, skim
from mcpguard.wire.arguments import Unbuilt
from mcpguard.wire.frames import HEAVY_PARTS, Frame, Refusal, is_heavy
from tests.build import Talk, call_line

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=30,
)
NEAR = st.lists(st.sampled_from([*'[]{},:"0a -.eE1\\n', "null", "true", '"a"', "[[[[", "]]]]", '{"a":', "\u00e9"]), max_size=30)


def is_json(text: str) -> bool:
    (message,) = frames.parse(text.encode())[:1]
    return not isinstance(message, Refusal) or message.code != frames.PARSE_ERROR


def skimmed(text: str, *, max_depth: int = 600, max_batch: int = 9) -> object:
    line = text.encode(errors="surrogatepass")
    return skim.Skimmer(line, json.loads, max_depth=max_depth, max_batch=max_batch).read()[0]


def passes(text: str) -> bool:
    try:
        skimmed(text)
    except ValueError:
        return False
    return True


@given(VALUES, st.sampled_from([None, 1]), st.booleans(), st.integers(0, 4))
def test_a_valid_value_is_accepted_in_any_spelling(value: object, indent: int | None, ascii_only: bool, around: int) -> None:
    text = json.dumps(value, indent=indent, ensure_ascii=ascii_only)
    assert passes("[" * around + text + "]" * around)


@given(NEAR.map("".join))
def test_a_text_that_the_parser_refuses_is_refused(text: str) -> None:
    if text.strip():
        assert passes(text) == is_json(text)


@given(VALUES, st.integers(0, 3), st.integers(0, 200), st.sampled_from(list('[]{},:"0a \\')))
def test_a_text_with_one_changed_character_is_accepted_as_by_the_parser(value: object, around: int, at: int, char: str) -> None:
    text = "[" * around + json.dumps([{"a": value}, 0]) + "]" * around
    at %= len(text)
    text = text[:at] + char + text[at + 1 :]
    if text.strip():
        assert passes(text) == is_json(text)


@pytest.mark.parametrize("innermost", ["[0]", "[]", "{ }"])
@pytest.mark.parametrize("opening", ["[", '{"":'])
@pytest.mark.parametrize("around", ["%s", "[%s]", '{"a":0,"params":{"b":%s}}', '[0,{"a":%s},[0]]'])
def test_the_depth_of_a_heavy_line_is_exact(opening: str, around: str, innermost: str) -> None:
    closing = chr(ord(opening[0]) + 2)
    depth = around.replace("[0]", "").count("[") + around.count("{") + 20
    text = around % (opening * 19 + innermost + closing * 19)
    skimmed(text, max_depth=depth)
    with pytest.raises(RecursionError):
        skimmed(text, max_depth=depth - 1)


HEAVY = "[" + "[]," * HEAVY_PARTS + "0]"
LINES = [
    b'{"id":1,"method":"tools/call","params":{"name":"t","_meta":{"a":1,"traceparent":"x"},"arguments":%s}}',
    b'{"id":1,"method":"tools/call","params":{"name":"t","_meta":{},"arguments":%s}}',
    b'{"id":1,"method":"tools/call","params":{"name":"t","_meta":%s}}',
    b'{"id":1,"method":"tools/call","params":{"name":"t","_meta":{"a":%s}}}',
    b'{"id":1,"method":"tools/call","params":{"name":"t","_meta":{"a":%s]}}',
    b'{"id":1,"method":"tools/call","params":{"name":"t","name":"u","arguments":%s}}',
    b'{"id":1,"method":"tools/call","params":{"Name":"t","arguments":%s}}',
    b'{"id":1,"method":"tools/call","params":{},"x":%s}',
    b'{"id":1,"method":"tools/call","params":%s}',
    b'{"id":%s,"method":"x"}',
    b'{"method":"tools/call","params":{"name":"t","arguments":%s}}',
    b'{"id":1,"result":%s}',
    b'{"id":1,"result":%s} x',
    b'{"id":1,"result":%s]',
    b'{"id":1,"result":%s,}',
    b'{"id":1,"result":[%s}}',
    b'{"id":1,"result":[%s[0]]}',
    b'{"id":1,"params":{"a":%s],"method":"x"}',
    b'[{"id":1,"method":"x"},{"id":2,"method":"x","params":{"name":%s}},3]',
    b'[{"id":1,"method":"x","params":%s]]',
    b"%s",
    b"[[],%s]",
    b'"%%s" %s',
]


@pytest.mark.parametrize("line", LINES)
def test_a_heavy_line_is_checked_like_any_other(line: bytes) -> None:
    heavy, light = line % HEAVY.encode(), line % b"[0]"
    assert is_heavy(heavy)
    assert not is_heavy(light)
    for one, other in zip(frames.parse(heavy), frames.parse(light), strict=False):
        assert type(one) is type(other)
        if isinstance(one, Frame) and isinstance(other, Frame):
            assert (one.method, one.id, one.is_call) == (other.method, other.id, other.is_call)
            assert one.raw == heavy or one.raw in heavy
        if isinstance(one, Refusal) and isinstance(other, Refusal):
            assert (one.code == other.code, one.id, one.answered) == (True, other.id, other.answered)


def test_leaves_are_matched_in_parts_since_no_other_thread_runs_meanwhile() -> None:
    match = skim._INSIDE_OF[b"["].match(b"0," * 100_000 + b"0]")
    assert match
    assert match.end() < 10_000


@pytest.mark.parametrize("count", [0, 998, 999, 1000, 1001, 1002, 5000])
def test_any_number_of_leaves_is_checked(count: int) -> None:
    for begin, leaf, end in (("[", "0,", "]"), ("{", '"a":0,', "}")):
        leaves, last = leaf * count, leaf[:-1]
        assert passes(f"{begin}{leaves}{last}{end}")
        for bad in (f",{last}", f"{last},", f"{last},,{last}", f"{last} {last}", f"{last},]"):
            assert not passes(f"{begin}{leaves}{bad}{end}")
            assert not passes(f"{begin}{bad},{leaves}{last}{end}")


def test_a_batch_that_is_too_long_is_checked_to_its_end() -> None:
    assert skimmed("[0,0,0]", max_batch=1) == [None, None]
    assert not passes(f"[{'0,' * 20}0}}")


def test_only_the_members_that_are_read_are_built_of_a_heavy_line() -> None:
    (frame,) = frames.parse(LINES[0] % HEAVY.encode())
    assert isinstance(frame, Frame)
    assert frame.params == {"name": "t", "_meta": {"traceparent": "x"}, "arguments": Unbuilt(HEAVY)}


def test_heavy_arguments_are_kept_in_full_as_text() -> None:
    talk = Talk(arguments="full")
    talk.client(call_line("t", 1, arguments=json.loads(HEAVY)))
    (record,) = talk.records
    assert json.loads(str(record["arguments"])) == json.loads(HEAVY)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("{ }", {}),
        (' {"id" : 1 , "x":2}\r', {"id": 1}),
        ('{"id":"a\\u0062","result":[0]}', {"id": "ab", "result": Unbuilt("[0]")}),
        ('{"\\u0069d":1,"params":{"a":{"name":0},"name": "t" ,"arguments": {"a":[1]} }}',
         {"id": 1, "params": {"name": "t", "arguments": Unbuilt('{"a":[1]}')}}),
        ('{"params":{"clientInfo":{"name":"c"},"requestId":7}}', {"params": {"clientInfo": {"name": "c"}, "requestId": 7}}),
        ('{"params":{"_meta":{"traceparent":"x","y":1},"_meta":[]}}', {"params": {"_meta": Unbuilt("[]")}}),
        ('{"params":{"_meta":{"mcpguard/agent":{"params":1}}}}',
         {"params": {"_meta": {"mcpguard/agent": Unbuilt('{"params":1}')}}}),
        ("[ ]", []),
        ('[{"id":1},[3],{"id":[0]}]', [{"id": 1}, None, {"id": Unbuilt("[0]")}]),
        ("[{},{},{}]", [{}, {}, {}]),
        ("[0,0,0,0]", [None] * 4),
        ("7", Unbuilt("7")),
    ],
)  # fmt: skip
def test_a_heavy_line_gives_the_members_that_are_read(text: str, value: object) -> None:
    built = skimmed(text, max_batch=3)
    assert (built, type(built)) == (value, type(value))


def test_arrays_and_objects_are_built_only_up_to_a_bound() -> None:
    large = '{"a":' + HEAVY + "}"
    value = skimmed('{"params":{"inputResponses":' + large + ',"name":"t"}}')
    assert value == {"params": {"inputResponses": Unbuilt(large), "name": "t"}}


@pytest.mark.parametrize(
    ("first", "then", "fault"),
    [
        ("a", "b", ""),
        ("a", "a", "occurs twice"),
        ("id", "\\u0069d", "occurs twice"),
        ("a", "A", "only by case"),
        ("ß", "SS", "only by case"),
        ("a", "\\u0000", "U+0000"),
        ("a", "\\ud800", "surrogate"),
        ("a", "__proto__", "special meaning"),
        ("a", "$serde_json::private::x", "special meaning"),
        ("a", "iD", "only by case"),
        ("a", "i_d", "reserved key"),
        ("a", "x__proto__", ""),
    ],
)
@pytest.mark.parametrize("far", [False, True])
def test_many_keys_are_checked_like_a_few(first: str, then: str, fault: str, far: bool) -> None:
    between = "".join(f'"k{n}":{"{}" if n % 2 else "{" + chr(34) + "z" + chr(34) + ":0}"},' for n in range(5000))
    others = (between, "") if far else ("", between)
    (message,) = frames.parse(
        '{{"method":"x","{}":0,{}"{}":[{}0],{}"id":7}}'.format(first, others[0], then, "0," * 50_000, others[1]).encode()
    )
    if not fault:
        assert isinstance(message, Frame)
        return
    assert isinstance(message, Refusal)
    assert fault in message.message
    assert message.id == ("null" if first == "id" else "7")
