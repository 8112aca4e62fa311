"""The spans of keys and values in TOML."""

import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as st

from mcpguard.documents.model import Child, Container, Object, Scalar, plain, span
from mcpguard.documents.toml import located, parse

TEXTS = [
    "",
    "# only a comment",
    'mode = "observe" # why\n[[rule]]\n  tool = "a # b" \nlimit = [\n "5/1m", # one\n \'9/1h\',\n]\n\n[[ rule ]]\nper=[]\n',
    "rule = [{tool = 'x', limit = ['1/1s', '5/1m']}, {}]",
    'a."b\\u0020c".d = 1979-05-27 07:32:00\n[a.e]\nf=1.5\n[[x.y]]\nz=true\n[x.y.w]\nv=""\n[[x.y]]\nz=0\n',
    'a = """one\n[[rule]]\nb = 2 \\" """"\nb = \'\'\'\n]\'\'\'\'\nc = """"""\nd = "\\\\"\n',
    "a = [[[[[[[1, '[', \"]\", { b = [2] }]]]]]]] # ]\nb = 1",
    "a = {b = {c = {d = {e = {f = '}'}}}}}\nb = 1\n",
    Path(__file__).with_name("hard.toml").read_text(encoding="utf-8"),
]


def children(container: Container) -> Iterator[Child]:
    for child in container.children:
        yield child
        yield from children(child.node) if isinstance(child.node, Container) else ()


def check(text: str) -> None:
    for spelled in (text, text.replace("\n", "\r\n")):
        root = parse(spelled)
        assert plain(root) == tomllib.loads(spelled, parse_float=str)
        for _, node, key, start, end in children(root):
            if isinstance(node, Scalar):
                assert tomllib.loads(f"x = {spelled[node.start : node.end]}", parse_float=str) == {"x": node.value}
            assert not key or key in tomllib.loads(f"{spelled[start:end]} = 0")


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_every_key_and_value_is_found_at_its_place(text: str) -> None:
    check(text)


keys = st.text("ab. \"'#=[]\\\n\té", min_size=1, max_size=4)
scalars = st.booleans() | st.integers(-9, 9) | st.floats(-9, 9) | st.text("ab\"'#]}[\\\n,= é", max_size=5) | st.datetimes()
trees = st.recursive(scalars, lambda of: st.lists(of, max_size=3) | st.dictionaries(keys, of, max_size=3), max_leaves=8)


@given(st.dictionaries(keys, trees, max_size=4))
def test_they_are_found_in_any_valid_text(data: dict[str, Any]) -> None:
    check(tomli_w.dumps(data))


def test_a_header_is_the_span_of_its_table_and_of_its_key() -> None:
    text = "[[rule]]\ntool = 'x'\n[[ rule ]]\n[mode]\n"
    spans = [span(located(text), path, of_key=of_key) for path in (("rule", 1), ("mode",)) for of_key in (False, True)]
    assert [text[slice(*one)] for one in spans] == ["[[ rule ]]", "[[ rule ]]", "[mode]", "[mode]"]
    assert text[slice(*span(located(text), ("rule", 0, "tool")))] == "'x'"
    assert text[slice(*span(located(text), ("rule", 0, "tool"), of_key=True))] == "tool"


def test_deep_nesting_does_not_exhaust_the_stack() -> None:
    found = located("a = " + "[" * 200 + "]" * 200)
    assert isinstance(found, Object)
    assert span(found, ("a",)) == (4, 404)
