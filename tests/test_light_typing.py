"""The `NamedTuple` of `light_typing` does what that of `typing` does."""

import copy
import pickle
import typing
from typing import Any

import pytest

from mcpguard.light_typing import Any as Anything
from mcpguard.light_typing import Literal, NamedTuple, get_args


class Light(NamedTuple):
    """A light one."""

    first: int
    second: "str | Anything"
    third: float = 0.5

    @property
    def both(self) -> str:
        return f"{self.first}{self.second}"


class Usual(typing.NamedTuple):
    first: int
    second: str
    third: float = 0.5


class Empty(NamedTuple):
    pass


def test_tuples_are_made_read_and_changed_by_names_and_places() -> None:
    made = Light(1, second="b")
    assert tuple(made) == (1, "b", 0.5)
    assert (made.first, made.third, made.both) == (1, 0.5, "1b")
    assert made._replace(third=2.0) == Light._make([1, "b", 2.0]) == Light(1, "b", 2.0)
    with pytest.raises((TypeError, ValueError)):
        made._replace(fourth=4)  # type: ignore[call-arg]
    assert made._asdict() == {"first": 1, "second": "b", "third": 0.5}
    assert repr(made) == "Light(first=1, second='b', third=0.5)"
    assert Empty() == ()
    assert pickle.loads(pickle.dumps(made)) == copy.copy(made) == made  # noqa: S301 - made here
    assert not hasattr(made, "__dict__")
    match made:
        case Light(first, _, third):
            assert (first, third) == (1, 0.5)


@pytest.mark.parametrize(
    ("values", "named"), [((1,), {}), ((1, "b", 2.0, 3), {}), ((1, "b"), {"fourth": 4}), ((1,), {"first": 1})]
)
def test_wrong_values_are_refused_also_for_the_first_tuple_of_a_kind(values: tuple[Any, ...], named: dict[str, Any]) -> None:
    class Fresh(NamedTuple):
        first: int
        second: str
        third: float = 0.5

    for kind in (Fresh, Fresh, Usual):
        with pytest.raises(TypeError):
            kind(*values, **named)
    assert tuple(Fresh(1, "b")) == tuple(Usual(1, "b"))


def test_a_kind_of_another_kind_has_its_fields_even_if_its_tuples_are_the_first() -> None:
    class Fresh(NamedTuple):
        first: int
        second: str = "b"

    class Special(Fresh):
        __slots__ = ()

    made = Special(1)
    assert (made, made.second, made._replace(first=2), Fresh(1)) == (Fresh(1), "b", Special(2), Special(1))
    assert isinstance(made._replace(first=2), Special)
    assert repr(made) == "Special(first=1, second='b')"


def test_the_words_of_a_literal_can_be_read() -> None:
    assert get_args(Literal["a", "b"]) == ("a", "b")
