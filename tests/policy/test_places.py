"""The places of keys and values in TOML texts."""

import tomllib
from collections.abc import Iterator
from typing import Any

import pytest
import tomlkit
from hypothesis import given
from hypothesis import strategies as st

from mcpguard.policy.places import Path, places

TEXTS = [
    "",
    "# only a comment",
    'mode = "observe" # why\n[[rule]]\n  tool = "a # b" \nlimit = [\n "5/1m", # one\n \'9/1h\',\n]\n\n[[ rule ]]\nper=[]\n',
    "rule = [{tool = 'x', limit = ['1/1s', '5/1m']}, {}]",
    'a."b\\u0020c".d = 1979-05-27 07:32:00\n[a.e]\nf=1.5\n[[x.y]]\nz=true\n[x.y.w]\nv=""\n[[x.y]]\nz=0\n',
    'a = """one\n[[rule]]\nb = 2 \\" """"\nb = \'\'\'\n]\'\'\'\'\nc = """"""\nd = "\\\\"\n',
    "a = [[[[[[[1, '[', \"]\", { b = [2] }]]]]]]] # ]\nb = 1",
    "a = {b = {c = {d = {e = {f = '}'}}}}}\r\nb = 1\r\n",
    "[rule]\nlimit = 'x'",
]


def values(value: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """The values of parsed TOML, by path."""
    yield path, value
    parts: Any = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in parts:
        yield from values(part, (*path, key))


def check(text: str) -> None:
    parsed = dict(values(tomllib.loads(text)))
    found = places(text)
    for path, (begin, end) in found.values.items():
        assert tomllib.loads(f"x = {text[begin:end]}")["x"] == parsed[path]
    for path, (begin, end) in found.keys.items():
        assert path in parsed
        assert text[begin:end].strip() == text[begin:end] != ""
    for path, value in parsed.items():
        if path and not isinstance(value, (dict, list)) and len(path) <= 4:
            assert path in found.values
            assert path in found.keys or isinstance(path[-1], int)


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_every_key_and_value_is_found_at_its_place(text: str) -> None:
    check(text)


keys = st.text("ab. \"'#=[]\\\n\té", min_size=1, max_size=4)
scalars = st.one_of(
    st.booleans(), st.integers(-9, 9), st.floats(-9, 9), st.text("ab\"'#]}[\\\n,= é", max_size=5), st.datetimes()
)
trees = st.recursive(
    scalars, lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(keys, inner, max_size=3)), max_leaves=8
)


@given(st.dictionaries(keys, trees, max_size=4))
def test_they_are_found_in_any_valid_text(data: dict[str, Any]) -> None:
    check(tomlkit.dumps(data))


def test_a_header_is_the_place_of_its_table() -> None:
    text = "[[rule]]\ntool = 'x'\n[[ rule ]]\n"
    found = places(text)
    assert [text[slice(*found.keys["rule", at])] for at in (0, 1)] == ["[[rule]]", "[[ rule ]]"]


def test_deep_nesting_does_not_exhaust_the_stack() -> None:
    text = "a = " + "[" * 200 + "]" * 200
    assert places(text).values["a",] == (4, 404)
