"""Generates clients' files in every dialect, with all the freedom in spelling and spacing that the dialect gives.

Each file has a stdio server `crm` and some more.
"""

import json
import re
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from hypothesis import strategies as st

from mcpguard.clients.entries import Layout
from mcpguard.documents.document import Dialect

Draw = Callable[[st.SearchStrategy[Any]], Any]


class File(NamedTuple):
    data: bytes
    layout: Layout
    dialect: Dialect
    words: tuple[str, ...]  # the command and the arguments of `crm`
    has_args: bool  # whether `crm` has a member for arguments


WORDS: Final = st.sampled_from(
    [
        *("npx", "-y", "--", "run", "mcpguard", "@acme/crm", "C:\\crm\\x.db", "${input:t}", 'a"b'),
        *("é😀", "it's", "", "a b", "#x", "//", "1", "true"),
    ]
)
PROGRAMS: Final = st.sampled_from(["npx", "uvx", "C:\\bin\\crm.exe", "${CRM:-crm}", "/opt/a b/crm", "mcpguard-x", "é", "it's"])


def file(dialect: Dialect) -> st.SearchStrategy[File]:
    return {Dialect.TOML: toml_files, Dialect.YAML: yaml_files}.get(dialect, lambda: json_files(dialect))()


def _start(draw: Draw) -> tuple[str, list[str] | None]:
    """A program, and arguments if it has a member for them."""
    return draw(PROGRAMS), draw(st.none() | st.lists(WORDS, max_size=4))


def _bytes(draw: Draw, text: str) -> bytes:
    text = text.rstrip("\n") if draw(st.booleans()) else text  # JSON has spaces around it
    if draw(st.booleans()):
        text = text.replace("\n", "\r\n")
    return ("\ufeff" if draw(st.booleans()) else "").encode() + text.encode()


def _some(draw: Draw, *choices: str) -> str:
    return str(draw(st.sampled_from(choices)))


class Json:
    """Writes values with random gaps and spellings."""

    def __init__(self, draw: Draw, dialect: Dialect) -> None:
        comments = ["// c, ]\n", '/* " } */', "/**/", "//\n\t"] if dialect is not Dialect.JSON else []
        self.draw = draw
        self.gaps = st.sampled_from(["", "", " ", "\n", "\n    ", "\t", "\n\t", *comments])
        self.trailing_commas = dialect is Dialect.JSONC

    def gap(self) -> str:
        return str(self.draw(self.gaps))

    def string(self, text: str) -> str:
        token = json.dumps(text, ensure_ascii=self.draw(st.booleans()))
        if "\\" not in token and _some(self.draw, "", "", "escaped"):
            return re.sub("[np]", lambda match: f"\\u{ord(match[0]):04X}", token, count=1)
        return token

    def joined(self, opening: str, parts: list[str], closing: str) -> str:
        trailing = f",{self.gap()}" if parts and self.trailing_commas and self.draw(st.booleans()) else ""
        inside = ",".join(f"{self.gap()}{part}{self.gap()}" for part in parts) or self.gap()
        return opening + inside + trailing + closing

    def value(self, item: Any) -> str:
        if isinstance(item, list):
            return self.joined("[", [self.value(part) for part in item], "]")
        if isinstance(item, dict):
            return self.object([(key, self.value(part)) for key, part in item.items()])
        return self.string(item) if isinstance(item, str) else json.dumps(item)

    def member(self, key: str, text: str) -> str:
        return f"{self.string(key)}{self.gap()}:{self.gap()}{text}"

    def object(self, members: list[tuple[str, str]]) -> str:
        return self.joined("{", [self.member(key, text) for key, text in members], "}")


JSON_LAYOUTS: Final = [
    *(Layout(("mcpServers",)), Layout(("projects", "/p/q", "mcpServers")), Layout((), nested="transport")),
    *(Layout(("mcp",), args=None), Layout(("amp.mcpServers",), is_list=True)),
]


@st.composite
def json_files(draw: Draw, dialect: Dialect) -> File:
    write = Json(draw, dialect)
    layout = draw(st.sampled_from(JSON_LAYOUTS))
    program, args = _start(draw)
    words = (program, *(args or ()))
    entry: dict[str, Any] = {"command": list(words)} if layout.args is None else {"command": program}
    entry |= {} if layout.args is None or args is None else {"args": args}
    entry |= draw(st.dictionaries(st.sampled_from("abc"), _VALUES, max_size=2))
    if layout.is_list:
        entry["name"] = "crm"
    parts = [write.member(key, write.value(item)) for key, item in draw(st.permutations(list(entry.items())))]
    if draw(st.booleans()):  # of two members with one name the last counts
        parts.insert(0, write.member("command", write.value(draw(st.sampled_from(["old", 1, None, ["x"]])))))
    text = write.joined("{", parts, "}")
    if layout.nested and draw(st.booleans()):
        text = write.object([("transport", text), ("x", "1")])
    servers = [("other", write.value({"name": "other", "command": "x", "args": ["mcpguard", "run", "--"]}))]
    if not layout.is_list and draw(st.booleans()):
        servers.append(("crm", write.value({"command": "earlier", "args": []})))
    servers += [("crm", text), *draw(st.sampled_from([[], [("z", write.value({"name": "z", "url": "https://x"}))]]))]
    text = write.joined("[", [server for _, server in servers], "]") if layout.is_list else write.object(servers)
    for key in reversed(layout.path):
        text = write.object([("before", write.value(draw(_VALUES))), (key, text), ("after", write.value(draw(_VALUES)))])
    data = _bytes(draw, write.gap() + text + write.gap())
    return File(data, layout, dialect, words, args is not None or layout.args is None)


_VALUES: Final = st.sampled_from([None, True, 0, 1.5, "x", "// no", [], {}, [1, [2]], {"k": {"l": ["m"]}}])


@st.composite
def toml_files(draw: Draw) -> File:
    def string(text: str) -> str:
        kinds = [json.dumps(text, ensure_ascii=False), json.dumps(text).replace("\\ud83d\\ude00", "\\U0001f600")]
        kinds.append('"""' + json.dumps(text, ensure_ascii=False)[1:-1] + '"""')
        if "'" not in text:
            kinds += [f"'{text}'", f"'''{text}'''"]
        return _some(draw, *kinds)

    def array(items: list[str], *, is_open: bool) -> str:
        gaps = ["", " ", "\t", *(["\n", "\n    ", " # c, ]\n", '\n\t# "\n\t'] if is_open else [])]
        trailing = _some(draw, "", f",{_some(draw, *gaps)}") if items else ""
        parts = [f"{_some(draw, *gaps)}{string(item)}{_some(draw, *gaps)}" for item in items]
        return f"[{','.join(parts) or _some(draw, *gaps)}{trailing}]"

    program, args = _start(draw)
    equals = _some(draw, "=", " = ", "\t=  ")
    indent = _some(draw, "", "", "  ", "\t")
    comment = _some(draw, "", '  # it\'s "so"', "#")
    crm = _some(draw, "crm", '"crm"', "'crm'")
    members = [("command", string(program)), *([("args", array(args, is_open=True))] if args is not None else [])]
    members += draw(st.sampled_from([[], [("timeout", "20.0")], [("env", "{ A = '#', B = 1979-05-27 07:32:00 }")]]))
    members = list(draw(st.permutations(members)))
    lines = "".join(f"{indent}{key}{equals}{text}{comment}\n" for key, text in members)
    dotted = "".join(f"{indent}mcp_servers . {crm}.{key}{equals}{text}{comment}\n" for key, text in members)
    inline = f"mcp_servers.{crm}{equals}{{ {', '.join(f'{key}{equals}{text}' for key, text in members)} }}{comment}\n"
    header = f"[mcp_servers.{crm}]{comment}\n{lines}"
    spaced = f"{indent}[ mcp_servers . {crm} ]\n\n# above\n{lines}\n[mcp_servers.{crm}.tools.x]\nmode = 'a'\n"
    above = _some(draw, "", "# top\n", "model = 'x' # [mcp_servers.crm]\nnan = nan\n", 'x = """\n[mcp_servers.crm]\n"""\n')
    other = _some(draw, "", "[mcp_servers.other]\ncommand = 'x'\nargs = ['mcpguard']\n", "[[list]]\na = 1\n[[list]]\na.b = 2\n")
    if draw(st.booleans()):
        text = above + _some(draw, dotted, inline)
        other = other.replace("[mcp_servers.other]", "[others]")
    else:
        text = above + other + _some(draw, header, spaced)
        other = _some(draw, "", "\n[after]\n", "[mcp_servers]\n", '["a.b".c]\nd = [{ e = "]" }, [ [ ] ]]\n')
    text += other
    return File(_bytes(draw, text), Layout(("mcp_servers",)), Dialect.TOML, (program, *(args or ())), args is not None)


@st.composite
def yaml_files(draw: Draw) -> File:
    comment = _some(draw, "", "", "  # it's [so")

    def string(text: str, *, is_flow: bool) -> str:
        kinds = [json.dumps(text, ensure_ascii=False), "'" + text.replace("'", "''") + "'"]
        if re.fullmatch(r"[a-zA-Z/-][\w/@.\\: -]*[\w]|é", text, re.ASCII) and text != "true":
            kinds += [text] * 2
        if not is_flow and text.startswith("$"):
            kinds.append(text)
        return _some(draw, *kinds)

    program, args = _start(draw)
    layout = draw(st.sampled_from([Layout(("extensions",), command="cmd"), Layout(("mcpServers",), is_list=True)]))
    step = draw(st.sampled_from([1, 2, 4]))
    is_flow = draw(st.booleans())
    flow_args = args is None or not args or draw(st.booleans())
    members = [(layout.command, string(program, is_flow=is_flow or flow_args))]
    pad = " " * step
    if args is not None and (is_flow or flow_args):
        gap = _some(draw, "", " ")
        inside = f",{gap or ' '}".join(string(item, is_flow=True) for item in args)
        members.append(("args", f"[{gap}{inside}{gap}]"))
    elif args is not None:
        dash = _some(draw, "", pad)
        head = _some(draw, "", f"\n{dash}# head")
        between = _some(draw, "", f"\n{dash}# between")
        items = "".join(f"\n{dash}-{_some(draw, ' ', '   ')}{string(item, is_flow=False)}{comment}{between}" for item in args)
        members.append(("args", head + items))
    members += draw(st.sampled_from([[], [("timeout", "300")], [("bundled", "null")], [("envs", "{A: '}'}")]]))
    members = list(draw(st.permutations(members)))
    if layout.is_list:
        members.insert(0, ("name", "crm"))
    if is_flow:
        body = ["{" + ", ".join(f"{key}: {text}" for key, text in members) + "}" + comment]
    else:
        lines = [f"{key}:{text}" if text[:1] == "\n" else f"{key}: {text}{comment}" for key, text in members]
        body = "\n".join(lines).split("\n")
    if layout.is_list:
        body = [f"{'- ' if at == 0 else '  '}{line}" for at, line in enumerate(body)]
        other = ["- {name: other, command: x}", "# between"]
    elif is_flow:
        body = [f"crm: {body[0]}"]
        other = ["other: {cmd: x}"]
    else:
        body = [f"crm:{comment}", *(pad + line for line in body)]
        other = ["other:", f"{pad}cmd: x"]
    servers = draw(st.sampled_from([body, [*other, *body], [*body, *other]]))
    text = f"{_some(draw, '', '# top' + chr(10), 'a: {b: [c]}' + chr(10), '---' + chr(10))}{layout.path[0]}:{comment}\n"
    text += "".join(f"{pad}{line}\n" for line in servers) + _some(draw, "", "after: 1\n", "\n# end\n")
    return File(_bytes(draw, text), layout, Dialect.YAML, (program, *(args or ())), args is not None)
