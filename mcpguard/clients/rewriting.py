"""Rewrites entries that cannot be guarded by an insertion. A record in mcpguard's state folder restores the old text.

A remote server gets a command: `npx mcp-remote`, which speaks to its URL. A server that a plugin brings to Codex gets an entry
of its own in Codex's file, which replaces the plugin's.
"""

import json
import re
from collections.abc import Iterator
from typing import Any, Final

import tomli_w

from mcpguard.clients.discovery import FileFault, Source, content_of, entries_of, may_exist, readable_entries
from mcpguard.clients.entries import ENV, URLS, Entry, holder_of, servers_of
from mcpguard.clients.launcher import Launcher
from mcpguard.clients.plan import ChangePlan, EntryOutcome, UndoRecord, real, record_of
from mcpguard.clients.plugins import of_plugin, plugin_sources
from mcpguard.documents.document import Dialect, Document, Splice, encoded, is_blank, quoted
from mcpguard.documents.document import read as parsed
from mcpguard.documents.model import Container, Object, Unreadable, plain
from mcpguard.text.redaction import masked_words

_REPLACED: Final = ("type", *URLS, "headers", "http_headers", "env_http_headers", "bearer_token_env_var")
_SIGN_IN: Final = {"oauth", "auth", "authProviderType", "oauth_resource"}
"""Members with which a client signs in by itself. `mcp-remote` signs in, too, but cannot be told these."""

_MAY_HOLD_KEY: Final = re.compile(r"[?#]|(?<=[^:/]/)(?=[^/]*[0-9])[^/]{20,}")
"""In a URL, a query, or a part of the path as long as a key, with digits."""

_OF_CODEX: Final = ("env", "env_vars", "startup_timeout_sec", "tool_timeout_sec", "enabled_tools", "disabled_tools", "required")
"""What an own entry takes over from a plugin's server, beside its command and its folder."""


def bridged(plan: ChangePlan, source: Source, entry: Entry, launcher: Launcher) -> EntryOutcome:
    """Plan to start a remote server by `npx mcp-remote` through mcpguard. Headers go into variables, not on the command line.

    Raises:
        FileFault: Something of the entry cannot be carried over.
    """
    document = parsed(plan.content(source.file), source.dialect)
    whole = dict(servers_of(document, source.layout))[entry.name]
    assert isinstance(whole, Object)  # noqa: S101 - it has a URL
    node = holder_of(whole, source.layout)
    made = _made(source, plain(node), entry, launcher)
    if reason := _refusal(source, node, entry, made):
        hint = f"without it: mcpguard install {source.client.key} --enforce" if source.client.hook else "see the manual"
        raise FileFault(f"{source.file}: {entry.name}: no bridge: {reason}", hint)
    text, first, end = document.text, node.children[0].start, node.children[-1].end
    members = [_member(key, value, source.dialect) for key, value in made.items()]
    members += [text[child.start : child.end] for child in node.children if child.key not in (*_REPLACED, *made)]
    is_long = node.is_block or "\n" in text[node.start : first]
    gap = document.line_break(first) + document.indentation(first) if is_long else " "
    new = (gap if node.is_block else f",{gap}").join(members)
    data = document.after([Splice(first, end, new)])
    if _others(parsed(data, source.dialect), source, entry) != _others(document, source, entry):
        raise FileFault(f"{source.file}: {entry.name}: no bridge: the entry cannot be edited in place")
    plan.put(source.file, data, source.dialect)
    plan.note(record_of(source, entry.name)._replace(old=text[first:end], new=new), holds=True)
    return EntryOutcome(source, entry, "guard", "its URL is reached through npx mcp-remote")


def _made(source: Source, values: dict[str, Any], entry: Entry, launcher: Launcher) -> dict[str, Any]:
    """The members that make a remote entry one with a command. `mcp-remote` fills in variables in headers."""
    headers = {**_table(values, "headers"), **_table(values, "http_headers")}
    variables = _table(values, "env_http_headers")
    env = {f"MCP_HEADER_{at}": value for at, value in enumerate(headers.values(), 1)}
    lines = [(name, f"${{{variable}}}") for name, variable in [*zip(headers, env, strict=True), *variables.items()]]
    if token := values.get("bearer_token_env_var"):
        lines.append(("Authorization", f"Bearer ${{{token}}}"))
    words = ["npx", "-y", "mcp-remote", entry.detail, *(["--allow-http"] if entry.detail.startswith("http://") else [])]
    words = [*launcher.words(entry.name), *words, *(word for name, value in lines for word in ("--header", f"{name}:{value}"))]
    command, args = source.layout.command, source.layout.args
    made: dict[str, Any] = {"type": "stdio" if args else "local"} if "type" in values else {}
    made |= {command: words[0], args: words[1:]} if args else {command: words}
    names = [*variables.values(), *([token] if token else [])]
    return made | ({ENV[0] if args else ENV[1]: env} if env else {}) | ({"env_vars": names} if names else {})


def _table(values: dict[str, Any], key: str) -> dict[str, str]:
    table = values.get(key, {})
    if not isinstance(table, dict) or not all(isinstance(value, str) for value in table.values()):
        raise Unreadable(f"no bridge: {key} is not a table of texts")
    return table


def _refusal(source: Source, node: Container, entry: Entry, made: dict[str, Any]) -> str:
    """Why a remote entry gets no bridge; empty if it gets one."""
    fills = source.client.fills or source.file.name == ".mcp.json"  # Claude Code reads it, too
    keys = {child.key for child in node.children}
    if source.dialect is Dialect.YAML or any(isinstance(one.node, Object) and one.node.is_block for one in node.children):
        return "it is YAML, or has a table of its own: write its command yourself"
    if any(mark in entry.detail for mark in "${") or masked_words([entry.detail]) != [entry.detail]:
        return "its URL holds a variable or a secret, which would be on a command line"
    if _MAY_HOLD_KEY.search(entry.detail):
        return "its URL has a query, or a part that may be a key, which would be on a command line"
    if keys & {*_SIGN_IN, *ENV}:
        return f"mcp-remote cannot be told its {', '.join(sorted(keys & {*_SIGN_IN, *ENV}))}"
    if fills and any("${" in word for word in made[source.layout.args or source.layout.command]):
        return "its headers would be on a command line, because the client fills in variables there"
    return ""


def _member(key: str, value: Any, dialect: Dialect) -> str:
    relation = ": " if dialect.is_json else " = "
    if isinstance(value, dict):
        return f"{quoted(key)}{relation}{{{', '.join(_member(*pair, dialect) for pair in value.items())}}}"
    text = f"[{', '.join(map(quoted, value))}]" if isinstance(value, list) else quoted(value)
    return f"{quoted(key)}{relation}{text}"


def _others(document: Document, source: Source, entry: Entry) -> dict[str, Any]:
    return {name: plain(node) for name, node in servers_of(document, source.layout) if name != entry.name}


def restored(plan: ChangePlan, source: Source, entry: Entry) -> bool:
    """Plan to put the old text in place of what this module has written, unless it was changed since."""
    document = parsed(plan.content(source.file), source.dialect)
    whole = dict(servers_of(document, source.layout))[entry.name]
    for record in plan.rewritten(source, entry.name):
        plan.note(record, holds=False)
        places = (match.span() for match in re.finditer(re.escape(record.new), document.text))
        place = next((place for place in places if place[1] > whole.start), None)
        if not place and source.dialect.is_json and isinstance(whole, Object):
            node, written = holder_of(whole, source.layout), parsed(f"{{{record.new}}}".encode(), source.dialect)
            if plain(node) == plain(written.root):  # the client has laid it out anew
                place = node.children[0].start, node.children[-1].end
        if place:
            plan.put(source.file, document.after([Splice(*place, record.old)]), source.dialect)
            return True
    return False


def undone(plan: ChangePlan, source: Source, entry: Entry) -> bool:
    """As `restored`. Plan also to remove a file that this module has made, if nothing else is in it."""
    is_restored, made = restored(plan, source, entry), UndoRecord(real(source.file), ())
    if is_restored and plan.holds(made) and is_blank(plan.content(source.file)):
        plan.put(source.file, None, source.dialect)
        plan.note(made, holds=False)
    return is_restored


def plan_plugins(plan: ChangePlan, source: Source, servers: frozenset[str], launcher: Launcher) -> Iterator[EntryOutcome]:
    """Plan an own entry in Codex's file for each server that a plugin brings. One of an older version of the plugin is renewed.

    Raises:
        FileFault: The file cannot have one.
    """
    own, is_new = {one.name: one for one in entries_of(source, plan.content(source.file))}, not may_exist(source.file)
    for brought in plugin_sources(plan.machine, [source.client]):
        for one in readable_entries(brought):
            entry = of_plugin(plan.machine, brought, one, replaced=False)
            known, records = own.get(entry.name), plan.rewritten(source, entry.name)
            wanted = entry.kind == "stdio" and (not servers or entry.name in servers) and (records or not known)
            if not wanted:
                continue
            block = _own_entry(brought, entry, launcher)
            (new,) = entries_of(source, block.encode())
            if known and (known.own_words, known.cwd) == (new.own_words, new.cwd):
                continue
            if known and not restored(plan, source, known):
                what = f"{source.file}: {entry.name}: not changed: its entry was edited"
                raise FileFault(what, "remove it, then run this again")
            old = plan.content(source.file)
            added = ("\n" if old else "") + ("" if old.endswith(b"\n") or not old else "\n") + block
            entries_of(source, old + encoded(added))
            plan.put(source.file, old + encoded(added), source.dialect)
            plan.note(record_of(source, entry.name)._replace(new=added), holds=True)
            if is_new:
                plan.note(UndoRecord(real(source.file), ()), holds=True)
            yield EntryOutcome(source, entry, "guard", f"in place of the server of the plugin {brought.plugin}")


def _own_entry(brought: Source, entry: Entry, launcher: Launcher) -> str:
    """The entry of a plugin's server for Codex's own file. Codex starts it in the session's folder if it names none."""
    file = content_of(brought.file)
    raw = file.get("mcpServers", file)[entry.name]
    table = {"command": launcher.program, "args": [*launcher.words(entry.name)[1:], *entry.words]}
    table |= {key: raw[key] for key in _OF_CODEX if key in raw}
    if entry.cwd:
        table["cwd"] = str(brought.folder / entry.cwd) if brought.folder else entry.cwd
    text = json.dumps(table).replace("${CLAUDE_PLUGIN_ROOT}", "${PLUGIN_ROOT}")
    table = json.loads(text.replace("${PLUGIN_ROOT}", json.dumps(str(brought.folder))[1:-1]), parse_float=_whole)
    return f"# Added by mcpguard in place of a plugin's server\n{tomli_w.dumps({'mcp_servers': {entry.name: table}})}"


def _whole(number: str) -> float:
    return int(float(number)) if float(number).is_integer() else float(number)  # every number of a document is a float
