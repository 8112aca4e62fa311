import json
import tomllib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcpguard.clients.entries import Entry, entries
from mcpguard.documents.document import Dialect, read
from mcpguard.documents.model import Unreadable, plain
from tests.clients.generated import File, file
from tests.clients.single import guarded, reguarded, unguarded

GUARD = ("/opt/Müller & Co\\x/mcpguard", "run", "--server", "crm", "--")
few = settings(max_examples=25, deadline=None)
every_dialect = pytest.mark.parametrize("dialect", list(Dialect), ids=lambda dialect: dialect.name)


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


def crm(data: bytes, made: File) -> Entry:
    return next(entry for entry in entries(data, made.layout, made.dialect) if entry.name == "crm")


def parted(data: bytes, made: File) -> tuple[list[str], Any]:
    """The words of the server, and all other values of the file."""
    root = value(data, made.dialect)
    servers = root
    for key in made.layout.path:
        servers = servers[key]
    entry = next(item for item in servers if item["name"] == "crm") if made.layout.is_list else servers["crm"]
    holder = entry.get("transport", entry)
    command, args = holder.pop(made.layout.command), holder.pop("args", [])
    return (command if isinstance(command, list) else [command, *args]), root


@every_dialect
@few
@given(st.data())
def test_guarding_changes_the_command_alone_and_can_be_undone_byte_for_byte(dialect: Dialect, data: st.DataObject) -> None:
    made = data.draw(file(dialect))
    new = guarded(made.data, made.layout, made.dialect, "crm", GUARD)
    words, rest = parted(new, made)
    assert words == [*GUARD, *made.words]
    assert rest == parted(made.data, made)[1]
    assert crm(new, made) == Entry("crm", "stdio", (*GUARD, *made.words), GUARD, False, "", crm(made.data, made).env)
    assert unguarded(new, made.layout, made.dialect, "crm", drop_empty_args=not made.has_args) == made.data


@every_dialect
@few
@given(st.data())
def test_guarding_twice_is_guarding_once_and_unguarding_needs_a_guard(dialect: Dialect, data: st.DataObject) -> None:
    made = data.draw(file(dialect))
    new = guarded(made.data, made.layout, made.dialect, "crm", GUARD)
    assert guarded(new, made.layout, made.dialect, "crm", GUARD) == new
    assert unguarded(made.data, made.layout, made.dialect, "crm", drop_empty_args=True) == made.data


@every_dialect
@few
@given(st.data())
def test_another_path_of_mcpguard_can_be_undone_too(dialect: Dialect, data: st.DataObject) -> None:
    made = data.draw(file(dialect))
    new = guarded(made.data, made.layout, made.dialect, "crm", GUARD)
    moved = reguarded(new, made.layout, made.dialect, "crm", "D:\\mcpguard.exe")
    assert crm(moved, made).guard == ("D:\\mcpguard.exe", *GUARD[1:])
    assert reguarded(moved, made.layout, made.dialect, "crm", GUARD[0]) == new
    assert unguarded(moved, made.layout, made.dialect, "crm", drop_empty_args=not made.has_args) == made.data


@every_dialect
@few
@given(st.data())
def test_a_damaged_file_raises_or_is_read_as_another_parser_reads_it(dialect: Dialect, data: st.DataObject) -> None:
    made = data.draw(file(dialect))
    at = data.draw(st.integers(0, len(made.data)))
    cut = data.draw(st.integers(0, 3))
    noise = data.draw(st.sampled_from([b"", b'"', b"'", b"]", b"{", b",", b":", b"\n", b"\xff", b"\x00", b"/*", b"- ", b"\t"]))
    broken = made.data[:at] + noise + made.data[at + cut :]
    try:
        if made.dialect is not Dialect.YAML:
            value(broken, made.dialect)
        found = entries(broken, made.layout, made.dialect)
    except (ValueError, Unreadable):
        for read_or_edit in (
            lambda: entries(broken, made.layout, made.dialect),
            lambda: guarded(broken, made.layout, made.dialect, "crm", GUARD),
            lambda: unguarded(broken, made.layout, made.dialect, "crm"),
            lambda: reguarded(broken, made.layout, made.dialect, "crm", "mcpguard"),
        ):
            with pytest.raises(Unreadable) as caught:
                read_or_edit()
            assert caught.value.line >= 1
        return
    if any(entry.name == "crm" and entry.kind == "stdio" for entry in found):
        try:
            new = guarded(broken, made.layout, made.dialect, "crm", GUARD)
        except Unreadable:
            return
        assert broken in [unguarded(new, made.layout, made.dialect, "crm", drop_empty_args=drop) for drop in (False, True)]
