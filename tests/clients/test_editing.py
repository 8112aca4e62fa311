"""All servers of a file are edited at once."""

import json
import tomllib
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcpguard.clients.entries import EntryEdit, Layout, edited, entries
from mcpguard.documents.document import Dialect, read
from mcpguard.documents.model import Unreadable, plain
from tests.build import steps
from tests.clients import generated
from tests.clients.single import guarded, reguarded, unguarded

SERVERS = Layout(("mcpServers",))
GUARD = ("/opt/Müller & Co\\x/mcpguard", "run", "--server", "crm", "--")
every_dialect = pytest.mark.parametrize("dialect", list(Dialect), ids=lambda dialect: dialect.name)


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


def edits(servers: int, *guard: str) -> list[EntryEdit]:
    return [EntryEdit(SERVERS, f"s{number}", guard) for number in range(servers)]


def guards(data: bytes, dialect: Dialect, servers: int) -> bytes:
    return edited(data, dialect, edits(servers, *GUARD)).data


def calls(work: Callable[[], object]) -> int:
    """How many functions are called if nothing was parsed before: work that does not depend on the machine."""
    read.cache_clear()
    return steps(work)


@pytest.mark.parametrize(("dialect", "between"), [*((dialect, "\n") for dialect in Dialect), (Dialect.JSON, " ")], ids=str)
def test_eight_times_as_many_servers_are_eight_times_as_much_work(dialect: Dialect, between: str) -> None:
    few, many = (file(dialect, servers, between=between) for servers in (10, 80))
    guarded_few, guarded_many = guards(few, dialect, 10), guards(many, dialect, 80)
    assert calls(lambda: guards(many, dialect, 80)) < 8.5 * calls(lambda: guards(few, dialect, 10))
    all_removed = calls(lambda: edited(guarded_many, dialect, edits(80)))
    assert all_removed < 8.5 * calls(lambda: edited(guarded_few, dialect, edits(10)))
    assert calls(lambda: entries(many, SERVERS, dialect)) < 8.5 * calls(lambda: entries(few, SERVERS, dialect))


@every_dialect
def test_servers_can_be_guarded_together_and_unguarded_one_by_one(dialect: Dialect) -> None:
    data = one_by_one = file(dialect, 4)
    together = new = guards(data, dialect, 4)
    for number in (2, 0, 3, 1):
        new = unguarded(new, SERVERS, dialect, f"s{number}")
        one_by_one = guarded(one_by_one, SERVERS, dialect, f"s{number}", GUARD)
    assert (new, one_by_one) == (data, together)


@pytest.mark.parametrize("odd", [{0}, {17}, {40}, {3, 4, 39}])
def test_servers_that_cannot_be_edited_are_named_and_the_others_are_edited(odd: set[int]) -> None:
    parts = [f"  s{at}:\n    ? command\n    : x\n" if at in odd else entry(Dialect.YAML, at) for at in range(41)]
    made = edited(("mcpServers:\n" + "".join(parts)).encode(), Dialect.YAML, edits(41, *GUARD))
    lines = ["mcpServers:\n", *parts]
    assert [(fault.message, fault.line, fault.column) for fault in made.faults] == [
        (f"the server s{at} cannot be edited in place", "".join(lines[: at + 1]).count("\n") + 2, 7) for at in sorted(odd)
    ]
    found = {one.name: one.guard for one in entries(made.data, SERVERS, Dialect.YAML)}
    assert found == {f"s{at}": None if at in odd else GUARD for at in range(41)}
    assert made.done == {edit for at, edit in enumerate(edits(41, *GUARD)) if at not in odd}


def test_many_servers_that_cannot_be_edited_are_all_named_after_a_bounded_number_of_tries() -> None:
    data = ("mcpServers:\n" + "".join(f"  s{at}:\n    ? command\n    : x\n" for at in range(100))).encode()
    read.cache_clear()
    made = edited(data, Dialect.YAML, edits(100, *GUARD))
    assert read.cache_info().misses <= 65
    assert (made.data, made.done) == (data, frozenset())
    told = " ".join(fault.message for fault in made.faults).replace(",", "").split()
    assert {f"s{at}" for at in range(100)} <= {*told}


def test_edits_that_are_possible_alone_but_not_together_are_not_made() -> None:
    data = b'{"mcpServers": {"crm": {"command": "npx"}, "odd": {"command": "npx"}}}'
    wanted = [EntryEdit(layout, name, GUARD) for layout in (SERVERS, SERVERS._replace(nested="x")) for name in ("crm", "odd")]
    made = edited(data, Dialect.JSON, [*wanted, EntryEdit(SERVERS, "odd", ("/x/python", "-m", "mcpguard", "run", "--"))])
    assert (made.data, made.done) == (data, frozenset())
    assert made.faults


def value(data: bytes, dialect: Dialect) -> Any:
    """The values in a file, read by another parser where there is one."""
    text = data.decode("utf-8-sig")
    if dialect is Dialect.JSON:
        return json.loads(text)
    if dialect is Dialect.TOML:
        return tomllib.loads(text, parse_float=str)
    if dialect is Dialect.YAML:
        from ruamel.yaml import YAML

        return YAML(typ="safe", pure=True).load(text)
    return plain(read(data, dialect).root)


def parted(data: bytes, made: generated.File) -> tuple[list[str], Any]:
    """The words of the server `crm`, and all other values of the file."""
    root = value(data, made.dialect)
    servers = root
    for key in made.layout.path:
        servers = servers[key]
    found = next(item for item in servers if item["name"] == "crm") if made.layout.is_list else servers["crm"]
    holder = found.get("transport", found)
    command, args = holder.pop(made.layout.command), holder.pop("args", [])
    return (command if isinstance(command, list) else [command, *args]), root


@every_dialect
@settings(max_examples=40, deadline=None)
@given(st.data())
def test_a_guard_changes_the_command_once_can_be_mended_and_goes_byte_for_byte(dialect: Dialect, data: st.DataObject) -> None:
    made = data.draw(generated.file(dialect))
    where = made.layout, dialect, "crm"
    new = guarded(made.data, *where, GUARD)
    words, rest = parted(new, made)
    assert (words, rest) == ([*GUARD, *made.words], parted(made.data, made)[1])
    before, after = ({one.name: one for one in entries(one, made.layout, dialect)} for one in (made.data, new))
    assert after == before | {"crm": before["crm"]._replace(words=(*GUARD, *made.words), guard=GUARD, has_args=True)}
    assert guarded(new, *where, GUARD) == new
    moved = reguarded(new, *where, "D:\\mcpguard.exe")
    assert parted(moved, made) == (["D:\\mcpguard.exe", *GUARD[1:], *made.words], rest)
    assert reguarded(moved, *where, GUARD[0]) == new
    for one in (made.data, new, moved):
        assert unguarded(one, *where, drop_empty_args=not made.has_args) == made.data


@every_dialect
@settings(max_examples=25, deadline=None)
@given(st.data())
def test_a_damaged_file_raises_or_is_read_as_another_parser_reads_it(dialect: Dialect, data: st.DataObject) -> None:
    made = data.draw(generated.file(dialect))
    where = made.layout, dialect, "crm"
    at = data.draw(st.integers(0, len(made.data)))
    cut = data.draw(st.integers(0, 3))
    noise = data.draw(st.sampled_from([b"", b'"', b"'", b"]", b"{", b",", b":", b"\n", b"\xff", b"\x00", b"/*", b"- ", b"\t"]))
    broken = made.data[:at] + noise + made.data[at + cut :]
    try:
        if dialect is not Dialect.YAML:
            value(broken, dialect)
        found = entries(broken, made.layout, dialect)
    except (ValueError, Unreadable):
        for read_or_edit in (
            lambda: entries(broken, made.layout, dialect),
            lambda: guarded(broken, *where, GUARD),
            lambda: unguarded(broken, *where),
            lambda: reguarded(broken, *where, "mcpguard"),
        ):
            with pytest.raises(Unreadable) as caught:
                read_or_edit()
            assert caught.value.line >= 1
        return
    if any(one.name == "crm" and one.kind == "stdio" for one in found):
        try:
            new = guarded(broken, *where, GUARD)
        except Unreadable:
            return
        assert broken in [unguarded(new, *where, drop_empty_args=drop) for drop in (False, True)]
