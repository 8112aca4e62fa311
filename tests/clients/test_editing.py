"""All servers of a file are edited at once."""

import sys
from collections.abc import Callable
from types import FrameType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcpguard.clients.editing import Edit, edited
from mcpguard.clients.entries import Layout, entries
from mcpguard.clients.hooks import without_hook
from mcpguard.documents.document import Dialect, read
from tests.clients import generated
from tests.clients.single import guarded, unguarded

SERVERS = Layout(("mcpServers",))
GUARD = ("/x/mcpguard", "run", "--server", "crm", "--")


def entry(dialect: Dialect, number: int) -> str:
    name = f"s{number}"
    if dialect is Dialect.TOML:
        return f"[mcpServers.{name}]\ncommand = 'npx'\nargs = ['-y', '{name}']\n[mcpServers.{name}.env]\nA = 'b'\n"
    if dialect is Dialect.YAML:
        return f"  {name}:\n    command: npx\n    args:\n    - -y\n    - {name}\n"
    return f'"{name}": {{"command": "npx", "args": ["-y", "{name}"], "env": {{"A": "b"}}}}'


def file(dialect: Dialect, servers: int, *, between: str = "\n") -> bytes:
    parts = [entry(dialect, number) for number in range(servers)]
    if dialect is Dialect.TOML:
        return "".join(parts).encode()
    if dialect is Dialect.YAML:
        return ("mcpServers:\n" + "".join(parts)).encode()
    return f'{{"mcpServers": {{{f",{between}".join(parts)}}}}}'.encode()


def edits(servers: int, *guard: str) -> list[Edit]:
    return [Edit(SERVERS, f"s{number}", guard) for number in range(servers)]


def calls(work: Callable[[], object]) -> int:
    """How many functions are called: a measure of the work that does not depend on the machine."""
    count = 0

    def note(frame: FrameType, event: str, arg: object) -> None:
        nonlocal count
        del frame, arg
        count += event in ("call", "c_call")

    read.cache_clear()
    before = sys.getprofile()
    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(before)
    return count


def parses(work: Callable[[], object]) -> int:
    """How often a file is parsed."""
    read.cache_clear()
    work()
    return read.cache_info().misses


@pytest.mark.parametrize("dialect", list(Dialect), ids=lambda dialect: dialect.name)
def test_a_file_is_parsed_before_and_after_all_edits_however_many_they_are(dialect: Dialect) -> None:
    data = file(dialect, 30)
    made = edited(data, dialect, edits(30, *GUARD))
    assert [one.guard for one in entries(made.data, SERVERS, dialect)] == [GUARD] * 30
    assert parses(lambda: edited(data, dialect, edits(30, *GUARD))) == 2
    assert parses(lambda: edited(made.data, dialect, edits(30))) == 2
    assert edited(made.data, dialect, edits(30)).data == data


@pytest.mark.parametrize(("dialect", "between"), [*((dialect, "\n") for dialect in Dialect), (Dialect.JSON, " ")], ids=str)
def test_eight_times_as_many_servers_are_eight_times_as_much_work(dialect: Dialect, between: str) -> None:
    few, many = (file(dialect, servers, between=between) for servers in (10, 80))
    guarded_few, guarded_many = guards(few, dialect, 10), guards(many, dialect, 80)
    assert calls(lambda: guards(many, dialect, 80)) < 8.5 * calls(lambda: guards(few, dialect, 10))
    all_removed = calls(lambda: edited(guarded_many, dialect, edits(80)))
    assert all_removed < 8.5 * calls(lambda: edited(guarded_few, dialect, edits(10)))
    assert calls(lambda: entries(many, SERVERS, dialect)) < 8.5 * calls(lambda: entries(few, SERVERS, dialect))


def guards(data: bytes, dialect: Dialect, servers: int) -> bytes:
    return edited(data, dialect, edits(servers, *GUARD)).data


def test_servers_can_be_guarded_together_and_unguarded_one_by_one() -> None:
    for dialect in Dialect:
        data = file(dialect, 4)
        new = guards(data, dialect, 4)
        one_by_one = data
        for number in (2, 0, 3, 1):
            new = unguarded(new, SERVERS, dialect, f"s{number}")
            one_by_one = guarded(one_by_one, SERVERS, dialect, f"s{number}", GUARD)
        assert (new, one_by_one) == (data, guards(data, dialect, 4))


ODD = "  odd{}:\n    ? command\n    : x\n"
"""A form of YAML in which arguments cannot be added."""


@pytest.mark.parametrize("place", [0, 17, 40])
def test_one_server_that_cannot_be_edited_is_named_and_the_others_are_edited(place: int) -> None:
    parts = [entry(Dialect.YAML, number) for number in range(40)]
    parts.insert(place, ODD.format(""))
    data = ("mcpServers:\n" + "".join(parts)).encode()
    made = edited(data, Dialect.YAML, [*edits(40, *GUARD), Edit(SERVERS, "odd", GUARD)])
    (fault,) = made.faults
    assert (fault.message, fault.line) == ("the server odd cannot be edited in place", 2 + 5 * place + 1)
    assert {one.name: one.guard for one in entries(made.data, SERVERS, Dialect.YAML)} == {
        **{f"s{number}": GUARD for number in range(40)},
        "odd": None,
    }
    assert made.done == frozenset(edits(40, *GUARD))


def test_many_servers_that_cannot_be_edited_are_all_named_after_a_bounded_number_of_tries() -> None:
    data = ("mcpServers:\n" + "".join(ODD.format(number) for number in range(200))).encode()
    wanted = [Edit(SERVERS, f"odd{number}", GUARD) for number in range(200)]
    read.cache_clear()
    made = edited(data, Dialect.YAML, wanted)
    assert read.cache_info().misses <= 25
    assert (made.data, made.done) == (data, frozenset())
    told = " ".join(fault.message for fault in made.faults)
    assert all(f"odd{number}" in told for number in range(200))


def test_edits_that_are_possible_alone_but_not_together_are_not_made() -> None:
    data = b'{"mcpServers": {"crm": {"command": "npx"}, "odd": {"command": "npx"}}}'
    wanted = [Edit(layout, name, GUARD) for layout in (SERVERS, SERVERS._replace(nested="x")) for name in ("crm", "odd")]
    made = edited(data, Dialect.JSON, [*wanted, Edit(SERVERS, "odd", ("/x/python", "-m", "mcpguard", "run", "--"))])
    assert (made.data, made.done) == (data, frozenset())
    assert made.faults


@pytest.mark.parametrize("dialect", list(Dialect), ids=lambda dialect: dialect.name)
@settings(max_examples=25, deadline=None)
@given(st.data())
def test_all_servers_of_a_generated_file_are_guarded_at_once_and_given_back_byte_for_byte(
    dialect: Dialect, data: st.DataObject
) -> None:
    made = data.draw(generated.file(dialect))
    before = entries(made.data, made.layout, dialect)
    names = [one.name for one in before if one.kind == "stdio" and not one.guard and one.name]
    new = edited(made.data, dialect, [Edit(made.layout, name, GUARD) for name in names])
    assert new.faults == ()
    assert [one.words for one in entries(new.data, made.layout, dialect) if one.guard == GUARD] == [
        (*GUARD, *one.words) for one in before if one.name in names and one.kind == "stdio"
    ]
    removals = [Edit(made.layout, one.name, drop_empty_args=not one.has_args) for one in before if one.name in names]
    assert edited(new.data, dialect, removals).data == made.data


def test_many_hooks_are_removed_with_one_parse_before_and_one_after() -> None:
    ours = '{"matcher": "*", "hooks": [{"command": "mcpguard hook codex"}]}'
    theirs = '{"matcher": "*", "hooks": [{"command": "lint"}, {"command": "mcpguard hook codex"}]}'
    data = f'{{"hooks": {{"PreToolUse": [{", ".join([ours, ours, theirs, ours] * 20)}]}}}}'.encode()
    assert parses(lambda: without_hook(data, "PreToolUse")) == 2
    left = '{"matcher": "*", "hooks": [{"command": "lint"}]}'
    assert without_hook(data, "PreToolUse") == f'{{"hooks": {{"PreToolUse": [{", ".join([left] * 20)}]}}}}'.encode()
