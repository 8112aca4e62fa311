import json
import tomllib
from collections.abc import Callable
from io import StringIO
from typing import Any

import pytest
import tomli_w
from ruamel.yaml import YAML

from mcpguard.clients.entries import Entry, Layout, entries
from mcpguard.documents.document import Dialect
from mcpguard.documents.model import Unreadable
from tests.clients.single import guarded, reguarded, unguarded

SERVERS = Layout(("mcpServers",))
LISTED = SERVERS._replace(is_list=True)
COMMAND = Layout(("extensions",), command="cmd")
GUARD = ("/x/mcpguard", "run", "--server", "crm", "--")


def servers(**entries: Any) -> bytes:
    return json.dumps({"mcpServers": entries}).encode()


def read(entry: Any, dialect: Dialect = Dialect.JSON) -> Entry:
    (found,) = entries(servers(crm=entry), SERVERS, dialect)
    return found


def yaml(text: str) -> list[Entry]:
    return entries(text.encode(), COMMAND, Dialect.YAML)


@pytest.mark.parametrize(
    ("words", "guard"),
    [
        (["mcpguard", "run", "--", "npx"], 3),
        (["/a b/mcpguard", "run", "--server", "--", "--", "npx", "--"], 5),
        ([r"C:\bin\MCPGUARD.EXE", "run", "--observe", "npx", "--", "x"], 3),
        (["C:/bin/mcpguard.exe", "run", "--server=x", "npx"], 3),
        (["mcpguard", "run", "--option-of-a-later-version", "x", "--", "npx"], 5),
        (["mcpguard", "run", "npx"], 2),
        *((["mcpguard", *words], None) for words in (["runs", "--", "npx"], ["policy", "show"], [])),
        *(([*words, "run", "--", "npx"], None) for words in (["mcpguard-tools"], ["npx", "mcpguard"])),
    ],
)
def test_a_guarded_entry_is_recognised_by_its_words(words: list[str], guard: int | None) -> None:
    found = read({"command": words[0], "args": words[1:]})
    assert found == Entry("crm", "stdio", tuple(words), None if guard is None else tuple(words[:guard]), False, "")
    data = servers(crm={"command": words[0], "args": words[1:]})
    (plain,) = entries(unguarded(data, SERVERS, Dialect.JSON, "crm"), SERVERS, Dialect.JSON)
    assert (plain.words, plain.guard) == (tuple(words[guard or 0 :]), None)


FAR = "https://x"
NO_TEXT = [{"command": None}, {"command": ["npx"]}, {"command": "npx", "args": [8080]}]
UNGUARDABLE: dict[tuple[str, str], list[Any]] = {
    ("remote", FAR): [
        *({"url": FAR}, {"serverUrl": FAR}, {"httpUrl": FAR}, {"uri": FAR, "type": "sse"}),
        {"url": FAR, "type": "http", "command": "ignored"},
    ],
    ("disabled", ""): [{"command": "npx", "disabled": True}, {"command": "npx", "enabled": False}],
    ("disabled", FAR): [{"url": FAR, "enabled": False}],
    ("bundled", ""): [{"type": "builtin"}, {"source": "extension"}, {"settings": {}}],
    ("faulty", "it has no command"): [{}],
    ("faulty", "it is not an object"): [[], "npx"],
    ("faulty", "its command is empty"): [{"command": ""}],
    ("faulty", "its command or an argument of it is not a text"): NO_TEXT,
    ("faulty", "its args is not an array"): [{"command": "npx", "args": "-y"}, {"command": "npx", "args": None}],
    ("faulty", "it starts mcpguard run without a server's command"): [{"command": "mcpguard", "args": ["run", "--"]}],
}


@pytest.mark.parametrize(("entry", "found"), [(entry, found) for found in UNGUARDABLE for entry in UNGUARDABLE[found]])
def test_an_entry_that_cannot_be_guarded_has_a_kind_and_a_detail(entry: Any, found: tuple[str, str]) -> None:
    one = read(entry)
    assert (one.kind, one.detail, one.guard) == (*found, None)


def test_a_command_beside_a_url_counts_unless_the_type_says_otherwise() -> None:
    assert read({"command": "npx", "url": "https://x"}).kind == "stdio"
    assert read({"command": "npx", "url": "https://x", "type": "stdio"}).kind == "stdio"


def test_a_disabled_entry_keeps_its_words_and_its_guard_can_be_removed() -> None:
    data = servers(crm={"command": "mcpguard", "args": ["run", "--", "npx", "-y"], "disabled": True})
    (found,) = entries(data, SERVERS, Dialect.JSON)
    guard = ("mcpguard", "run", "--")
    assert (found.kind, found.words, found.guard) == ("disabled", (*guard, "npx", "-y"), guard)
    assert read({"command": "npx", "enabled": False}).words == ("npx",)
    assert unguarded(data, SERVERS, Dialect.JSON, "crm") == servers(crm={"command": "npx", "args": ["-y"], "disabled": True})


def test_variables_with_another_value_than_a_text_are_left_out_and_a_sandboxed_entry_is_marked() -> None:
    assert read({"command": "npx", "env": {"A": "b", "N": 1, "L": ["b"], "O": {"P": "b"}, "Z": None}}).env == {"A": "b"}
    assert [read({"command": "npx", "sandboxEnabled": on}).is_sandboxed for on in (True, False)] == [True, False]


def test_an_array_of_all_words_must_be_an_array_of_texts() -> None:
    data = servers(a={"command": "npx"}, b={"command": []}, c={"command": ["x", 1]})
    assert [entry.detail for entry in entries(data, SERVERS._replace(args=None), Dialect.JSON)] == [
        "its command is not an array",
        "its command is empty",
        "its command or an argument of it is not a text",
    ]


@pytest.mark.parametrize("data", [b"", b" \r\n", b"\xef\xbb\xbf\n", b"{}", b"[]", b'{"mcpServers":[]}', b'{"mcpServers":null}'])
def test_a_file_without_servers_has_none(data: bytes) -> None:
    assert entries(data, SERVERS, Dialect.JSON) == []
    assert entries(data, LISTED, Dialect.JSON) == []


def test_of_equal_names_the_last_counts_and_a_list_shows_the_earlier_one_as_faulty() -> None:
    data = b'{"mcpServers": {"crm": {"command": "a"}, "crm": {"command": "b"}}}'
    assert [entry.words for entry in entries(data, SERVERS, Dialect.JSON)] == [("b",)]
    assert b'"a"' in guarded(data, SERVERS, Dialect.JSON, "crm", GUARD)
    data = b'{"mcpServers": {"crm": {"command": "a", "args": [1], "command": "b", "args": ["c"]}}}'
    assert [entry.words for entry in entries(data, SERVERS, Dialect.JSON)] == [("b", "c")]
    data = b'{"mcpServers": [{"name": "crm", "command": "a"}, {"name": "crm", "command": "b"}, 1]}'
    assert [(entry.kind, entry.detail) for entry in entries(data, LISTED, Dialect.JSON)] == [
        ("faulty", "a later server has the same name"),
        ("stdio", ""),
        ("faulty", "it is not an object"),
    ]
    new = guarded(data, LISTED, Dialect.JSON, "crm", GUARD)
    assert unguarded(new, LISTED, Dialect.JSON, "crm", drop_empty_args=True) == data


def test_of_several_servers_without_a_name_in_a_list_none_is_said_to_have_the_name_of_another() -> None:
    data = b'{"mcpServers": [{"command": "a"}, {"command": "b"}]}'
    first, last = entries(data, LISTED, Dialect.JSON)
    assert (first.kind, first.detail) == ("faulty", "it has no name")
    assert (last.kind, last.name) == ("stdio", "")


@pytest.mark.parametrize("edit", [guarded, unguarded, reguarded])
def test_a_server_that_does_not_exist_or_has_no_command_raises_a_lookup_error(edit: Callable[..., bytes]) -> None:
    more = [] if edit is unguarded else ["/x/mcpguard"] if edit is reguarded else [GUARD]
    for data in (servers(), servers(crm={"url": "https://x"}), servers(crm=1)):
        with pytest.raises(LookupError):
            edit(data, SERVERS, Dialect.JSON, "crm", *more)


def test_a_program_with_another_name_cannot_be_recognised_again_and_is_not_written() -> None:
    with pytest.raises(Unreadable, match="the server crm cannot be edited in place"):
        guarded(servers(crm={"command": "npx"}), SERVERS, Dialect.JSON, "crm", ("/x/python", "-m", "mcpguard", "run", "--"))


LIST = '["run", "--server", "crm", "--", "npx"]'


@pytest.mark.parametrize(
    ("args", "noted", "left"),
    [
        (
            '["-y"]',
            '["run", "--server" /* a, b */, // the name\n "crm", "--", // the end\n "npx", "-y"]',
            '[ /* a, b */ // the name\n  // the end\n "-y"]',
        ),
        ("", LIST.replace('"--server",', '"--server", /* a, b */').replace('"npx"', '// it\n"npx",'), "[ /* a, b */  // it\n]"),
        ("", LIST.replace('"--server",', '"--server", // the name\n').replace("]", " // it\n]"), "[ // the name\n  // it\n]"),
        ("", f"/* why */ {LIST}", "/* why */ []"),
    ],
    ids=["among", "among the only words", "after", "before"],
)
def test_a_comment_that_somebody_put_among_the_inserted_words_stays(args: str, noted: str, left: str) -> None:
    data = '{"mcpServers": {"crm": {"command": "npx"%s}}}'
    new = guarded((data % (args and f', "args": {args}')).encode(), SERVERS, Dialect.JSONC, "crm", GUARD).decode()
    before, words, after = new.partition(LIST if not args else LIST[:-1] + ', "-y"]')
    old = unguarded((before + noted + after).encode(), SERVERS, Dialect.JSONC, "crm", drop_empty_args=True)
    assert (words != "", old.decode()) == (True, data % f', "args": {left}')


def test_arguments_that_somebody_added_after_ours_keep_a_list_that_was_missing() -> None:
    new = guarded(servers(crm={"command": "npx"}), SERVERS, Dialect.JSON, "crm", GUARD)
    assert b'"--", "npx"]' in new
    new = new.replace(b'"npx"]', b'"npx", "-y"]')
    assert unguarded(new, SERVERS, Dialect.JSON, "crm", drop_empty_args=True) == servers(crm={"command": "npx", "args": ["-y"]})


def by_yaml(values: Any, *, flow: bool) -> str:
    writer = YAML(typ="safe", pure=True)
    writer.default_flow_style = flow
    out = StringIO()
    writer.dump(values, out)
    return out.getvalue()


@pytest.mark.parametrize("args", [None, [], ["-y", "it's"]])
@pytest.mark.parametrize("drop", [True, False])
@pytest.mark.parametrize(
    ("dialect", "rewritten"),
    [
        (Dialect.JSON, lambda values: json.dumps(values, indent=2, sort_keys=True)),
        (Dialect.JSON, json.dumps),
        (Dialect.TOML, tomli_w.dumps),
        (Dialect.TOML, lambda values: tomli_w.dumps(json.loads(json.dumps(values, sort_keys=True)))),
        (Dialect.YAML, lambda values: by_yaml(values, flow=False)),
        (Dialect.YAML, lambda values: by_yaml(values, flow=True)),
    ],
)
def test_the_guard_is_removed_after_the_client_has_rewritten_the_file(
    dialect: Dialect, rewritten: Callable[[Any], str], args: list[str] | None, drop: bool
) -> None:
    entry = {"command": "npx", "timeout": 20, "env": {"A": "b"}} | ({} if args is None else {"args": args})
    values = {"mcpServers": {"z": {"url": "https://x"}, "crm": entry}}
    plain = (tomli_w.dumps if dialect is Dialect.TOML else json.dumps)(values).encode()
    load: Callable[[str], Any] = tomllib.loads if dialect is Dialect.TOML else YAML(typ="safe").load
    new = rewritten(load(guarded(plain, SERVERS, dialect, "crm", GUARD).decode())).encode()
    assert next(entry.guard for entry in entries(new, SERVERS, dialect) if entry.name == "crm") == GUARD
    text = unguarded(new, SERVERS, dialect, "crm", drop_empty_args=drop).decode()
    old = load(text)
    assert args or drop or '"args": []' in text or dialect is not Dialect.JSON
    expected = {} if not args and drop else {"args": args or []}
    assert old["mcpServers"]["crm"] == {"command": "npx", "timeout": 20, "env": {"A": "b"}} | expected


@pytest.mark.parametrize("drop", [True, False])
def test_comments_in_a_yaml_block_of_which_nothing_is_left_stay(drop: bool) -> None:
    words = "    args:  # ours\n    - run\n    # where it ends\n    - --  # here\n\n    - npx # real\n    type: stdio\n"
    data = f"mcpServers:\n  crm:\n    command: /x/mcpguard\n{words}".encode()
    left = "    args: []  # ours\n    # where it ends\n      # here # real\n    type: stdio\n"
    assert unguarded(data, SERVERS, Dialect.YAML, "crm", drop_empty_args=drop) == (
        f"mcpServers:\n  crm:\n    command: npx\n{left}".encode()
    )


@pytest.mark.parametrize(
    "entry",
    [
        *("&a {cmd: x}", "{cmd: &a x}", "{cmd: x, args: &a []}", "\n  cmd: x\n  args:\n  - &a y"),
        *("*other", "{cmd: *word}", "{cmd: x, args: [*word]}", "\n  cmd: x\n  args:\n  - a\n  - *word"),
        *("{cmd: !!str x}", "{cmd: x, args: [!!str y]}", "{cmd: x, <<: {args: [y]}}"),
    ],
)
def test_a_yaml_entry_with_an_anchor_an_alias_a_tag_or_a_merge_key_is_refused(entry: str) -> None:
    found = yaml(f"a: &other {{cmd: y}}\nb: &word z\nextensions:\n crm: {entry}\n")
    assert [(entry.kind, entry.detail[:21]) for entry in found] == [("faulty", "it has a YAML anchor,")]


@pytest.mark.parametrize(
    ("text", "message", "place"),
    [
        ("a: 1\nextensions: &a\n crm: {cmd: x}\n", "extensions: it has a YAML anchor", (2, 13)),
        ("extensions:\n crm: {cmd: |\n  x\n}\n", "found character", (2, 13)),
    ],
    ids=["anchor", "no YAML"],
)
def test_yaml_whose_servers_cannot_be_read_raises_with_the_place(text: str, message: str, place: tuple[int, int]) -> None:
    with pytest.raises(Unreadable, match=message) as caught:
        yaml(text)
    assert (caught.value.line, caught.value.column) == place


@pytest.mark.parametrize(
    ("entry", "detail"),
    [
        ("\n  cmd: |\n   x\n  args: []", "its command is written on several lines; write it on one"),
        ("\n  cmd: x\n   y\n  args: []", "its command is written on several lines; write it on one"),
        ("\n  cmd: x{y}\n  args: []", "its command has brackets or commas; put it in quotes"),
        ("\n  cmd: x,y", "its command has brackets or commas; put it in quotes"),
    ],
)
def test_a_yaml_command_that_cannot_be_moved_as_it_is_written_is_refused(entry: str, detail: str) -> None:
    assert [(found.kind, found.detail) for found in yaml(f"extensions:\n crm:{entry}\n")] == [("faulty", detail)]


WORDS = '"args": ["run", "--server", "crm", "--", "npx"'
SPACED = {
    '{"command":"npx"}': '{"command":"/x/mcpguard","args":["run","--server","crm","--","npx"]}',
    '{"command": "npx"}': f'{{"command": "/x/mcpguard", {WORDS}]}}',
    '{"command":"npx","args":["-y","crm"]}': '"args":["run","--server","crm","--","npx","-y","crm"]}',
    '{\n\t"command" : "npx"\n}': '{\n\t"command" : "/x/mcpguard",\n\t"args" : ["run", "--server", "crm", "--", "npx"]\n}',
    '{"command": /* old */ "npx"}': f'{{"command": /* old */ "/x/mcpguard", {WORDS}]}}',
}
"""Entries with their spaces and lines, and what those of new arguments are."""

TABLES, NESTED = Layout(("m",), is_list=True), Layout(("m",), nested="transport")
LIST_OF_TABLES = "[[m]]\nname = 'a'\ncommand = 'x'\n\n[[m]]\nname = 'crm'\ncommand = 'y'\n[m.env]\nA = 'b'\n"


@pytest.mark.parametrize(
    ("dialect", "layout", "text", "written"),
    [
        (Dialect.YAML, COMMAND, "a: &env {A: b}\nextensions:\n crm:\n  cmd: x\n  envs: *env\n  args: [y]\n", '"--", x, y]'),
        (
            Dialect.YAML,
            COMMAND,
            'extensions: {crm: {"cmd":x}}',
            '"cmd":"/x/mcpguard", args: ["run", "--server", "crm", "--", x]}',
        ),
        (Dialect.YAML, COMMAND, "extensions:\n crm:\n  ? cmd\n  : x\n  ? args\n  : - y\n", '  : - "run"\n    - "--server"\n'),
        (Dialect.YAML, COMMAND, "extensions:\n crm:\n  cmd: x,y\n  args:\n  - a\n", "- x,y\n"),
        (Dialect.TOML, TABLES, LIST_OF_TABLES, """/mcpguard"\nargs = ["run", "--server", "crm", "--", 'y']\n"""),
        (Dialect.TOML, NESTED, "m = { crm = { transport.command = 'x' } }\n", """ = ["run", "--server", "crm", "--", 'x']"""),
        *((Dialect.JSONC, SERVERS, f'{{"mcpServers": {{"crm": {old}}}}}', new) for old, new in SPACED.items()),
    ],
)
def test_a_guard_has_the_entrys_style_and_goes_byte_for_byte(dialect: Dialect, layout: Layout, text: str, written: str) -> None:
    new = guarded(text.encode(), layout, dialect, "crm", GUARD)
    assert written in new.decode()
    assert unguarded(new, layout, dialect, "crm", drop_empty_args="args" not in text) == text.encode()


def test_words_keep_their_characters_in_every_dialect() -> None:
    guard = ('/é😀\u2028\x7f\x85"\\\t/mcpguard', "run", "--server", "\x01\ufeff", "--")
    toml, yaml = b"mcpServers.crm.command = 'x'", b"mcpServers: {crm: {command: x}}"
    for dialect, data in {Dialect.JSON: servers(crm={"command": "x"}), Dialect.TOML: toml, Dialect.YAML: yaml}.items():
        assert entries(guarded(data, SERVERS, dialect, "crm", guard), SERVERS, dialect)[0].guard == guard
