"""Plans what `install` and `uninstall` change in the entries of servers.

Most get `mcpguard run` before their command. Others are rewritten, and a record in mcpguard's state folder restores the old
text: a remote server gets a command, `npx mcp-remote`, which speaks to its URL; a server that a plugin brings to Codex gets an
entry of its own in Codex's file, which replaces the plugin's.

Also warns of commands that a client on macOS may not find: an app that the Dock starts has a short `PATH`.
"""

import json
import os
import re
import shutil
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import tomli_w

from mcpguard.clients.discovery import (
    FileFault,
    Source,
    content_of,
    entries_of,
    may_exist,
    of_plugin,
    plugin_sources,
    readable_entries,
)
from mcpguard.clients.entries import ENV, URLS, Entry, EntryEdit, edited, holder_of, servers_of
from mcpguard.clients.launcher import Launcher, is_same
from mcpguard.clients.plan import ChangePlan, EntryOutcome, UndoRecord, real, record_of
from mcpguard.documents.document import Dialect, Document, Splice, encoded, is_blank, quoted
from mcpguard.documents.document import read as parsed
from mcpguard.documents.model import Array, Container, Object, Unreadable, plain
from mcpguard.text.redaction import masked_words

OWN_COMMAND: Final = "its own command starts mcpguard run"
"""What is said of an entry that starts mcpguard through another program, which neither `install` nor `uninstall` changes."""

_LEFT: Final = {
    "remote": "remote: mcpguard guards only servers that the client starts",
    "disabled": "disabled",
    "bundled": "part of the client or of an extension, which starts it without a command in this file",
}

SHORT: Final = "/usr/bin:/bin:/usr/sbin:/sbin"
"""The `PATH` of apps that launchd starts. Some clients ask the login shell for a better one, and may fail to."""

_APPS: Final = frozenset("claude-desktop cursor vscode windsurf zed cline continue kiro lm-studio".split())
"""The clients that are apps, or extensions in apps. The others are started in a terminal, with the shell's `PATH`."""

_USUAL: Final = (
    "/opt/homebrew/bin",
    "/usr/local/bin",
    "~/.local/bin",
    "~/.volta/bin",
    "~/.asdf/shims",
    "~/.local/share/mise/shims",
    "~/.nvm/versions/node/*/bin",
    "~/.local/share/fnm/node-versions/*/installation/bin",
    "~/.bun/bin",
    "~/.deno/bin",
    "~/.cargo/bin",
)
"""Where package managers put programs."""

_ENV: Final = re.compile(rb"#! */usr/bin/env (?:-S )?([\w.+-]+)")


def plan_servers(
    plan: ChangePlan, sources: Iterable[Source], servers: frozenset[str], launcher: Launcher | None, *, bridge: bool = False
) -> None:
    """Plan to edit the entries of servers, all of a file at once. What cannot be done is a fault of the plan.

    Args:
        plan: The plan.
        sources: The files.
        servers: The names of the servers; empty for all.
        launcher: The command to write; None to undo what this function has done with one.
        bridge: Whether to guard remote servers by `npx mcp-remote`.
    """
    files: dict[str, list[Source]] = {}
    for source in sources:
        files.setdefault(real(source.file), []).append(source)
    for group in files.values():
        outcomes: list[EntryOutcome] = []
        for source in group:
            with plan.noting_faults(source.file):
                if launcher and source.client.key == "codex" and not source.folder:
                    plan.outcomes += plan_plugins(plan, source, servers, launcher)
                done = {one.server for one in plan.outcomes if one.source == source}
                for entry in entries_of(source, plan.content(source.file)):
                    plan.servers.add(entry.name)
                    if entry.name not in done and (not servers or entry.name in servers):
                        with plan.noting_faults(source.file):
                            outcomes.append(_outcome(plan, source, entry, launcher, bridge=bridge))
        _edit(plan, outcomes)


def _edit(plan: ChangePlan, outcomes: Sequence[EntryOutcome]) -> None:
    """Plan the edits of a file. Clients that share it want the same ones; the first of them has the strictest dialect."""
    done: Collection[EntryEdit] = ()
    edits = list(dict.fromkeys(one.edit for one in outcomes if one.edit))
    for source in [one.source for one in outcomes if one.edit][:1]:
        with plan.noting_faults(source.file):
            made = edited(plan.content(source.file), source.dialect, edits)
            for fault in made.faults:
                plan.note_fault(source.file, fault)
            plan.put(source.file, made.data, source.dialect)
            done = made.done
    for one in outcomes:
        if one.edit is None or one.edit in done:
            plan.outcomes.append(one)
        if one.edit and one.edit in done and one.action != "mend":  # without its record, an empty list would be left
            plan.note(record_of(one.source, one.server), holds=bool(one.edit.guard and one.edit.drop_empty_args))


def _outcome(plan: ChangePlan, source: Source, entry: Entry, launcher: Launcher | None, *, bridge: bool) -> EntryOutcome:
    if entry.guard is None and launcher:
        of_kind = bridged if bridge and entry.kind == "remote" else _guarded
        return of_kind(plan, source, entry, launcher)
    if entry.guard is None:
        starts = entry.starts_mcpguard
        return EntryOutcome(source, entry, "leave" if starts else "keep", OWN_COMMAND if starts else "")
    if launcher is None:
        if undone(plan, source, entry):
            return EntryOutcome(source, entry, "unguard")
        edit = EntryEdit(source.layout, entry.name, drop_empty_args=plan.holds(record_of(source, entry.name)))
        return EntryOutcome(source, entry, "unguard", edit=edit)
    guard = plan.guards.of_entry(source, entry.guard[0])
    if guard.is_gone:
        for record in plan.rewritten(source, entry.name):
            plan.note(record, holds=False)
            new = record.new.replace(quoted(entry.guard[0]), quoted(launcher.program))
            plan.note(record._replace(new=new), holds=True)
        edit = EntryEdit(source.layout, entry.name, (launcher.program, *entry.guard[1:]))
        return EntryOutcome(source, entry, "mend", f"{entry.guard[0]} is gone", edit)
    if guard.state == "unsafe" and entry.kind == "stdio":  # it guards nothing
        hint = f"write {launcher.program} in its place in the file"
        raise FileFault(f"{source.file}: {entry.name}: not changed: {guard.fault}", hint)
    return EntryOutcome(source, entry, "keep")


def _guarded(plan: ChangePlan, source: Source, entry: Entry, launcher: Launcher) -> EntryOutcome:
    if entry.may_start:
        raise FileFault(f"{source.file}: {entry.name}: not changed: {entry.detail}", "correct it in the file")
    left = entry.detail if entry.kind == "faulty" else _LEFT.get(entry.kind, "")
    if not (left or entry.name):
        raise FileFault(f"{source.file}: a server without a name: not changed", "give it a name in the file")
    if left or entry.starts_mcpguard:
        return EntryOutcome(source, entry, "leave", left or OWN_COMMAND)
    if entry.is_sandboxed and not _may_write(plan.content(source.file), source, plan.state):
        hint = f"add {plan.state} to sandbox.filesystem.allowWrite in this file, or remove sandboxEnabled"
        raise FileFault(f"{source.file}: {entry.name}: its sandbox would keep mcpguard from its counters", hint)
    remark = "it starts in the container, where mcpguard must have the same path" if source.is_of_container else ""
    edit = EntryEdit(source.layout, entry.name, launcher.words(entry.name), drop_empty_args=not entry.has_args)
    return EntryOutcome(source, entry, "guard", remark, edit)


def _may_write(data: bytes, source: Source, state: Path) -> bool:
    """Whether the sandbox of a VS Code file lets its servers write to mcpguard's state folder."""
    root = parsed(data, source.dialect).root
    path = (*source.layout.path[:-1], "sandbox", "filesystem", "allowWrite")
    node = root.get(*path) if isinstance(root, Object) else None
    texts = [text for text in plain(node) if isinstance(text, str)] if isinstance(node, Array) else []
    folders = [Path(os.path.expanduser(text)) for text in texts]  # noqa: PTH111
    return any(is_same(folder, part) for folder in folders for part in (state, *state.parents))


def short_path_warnings(plan: ChangePlan) -> Iterator[str]:
    """A warning for each command of a newly guarded server that an app on macOS may not find: it is not on the short `PATH`."""
    machine = plan.machine
    if machine.system != "darwin":
        return
    titles: dict[str, dict[str, None]] = {}
    for one in plan.outcomes:
        command = "".join(one.entry.words[:1])
        bare = command and os.path.basename(command) == command  # noqa: PTH119
        if one.action == "guard" and bare and one.source.client.key in _APPS and not shutil.which(command, path=SHORT):
            titles.setdefault(command, {})[one.source.client.title] = None
    path = os.pathsep.join([machine.environ.get("PATH", ""), *_usual(machine.home)])
    for command, names in titles.items():
        found = shutil.which(command, path=path)
        folders = dict.fromkeys(os.path.dirname(one) for one in (found, found and _interpreter(found, path)) if one)  # noqa: PTH120
        hint = "write its full path"
        if found:
            hint = f'write {found} in its place, and "PATH": "{os.pathsep.join([*folders, SHORT])}" into env'
        apps = " or ".join(names)
        yield f"{command} is not on the PATH of apps that the Dock starts. If {apps} cannot start a server with it, {hint}"


def _usual(home: Path) -> Iterator[str]:
    """The folders of package managers that exist, of several versions the newest first."""
    for pattern in _USUAL:
        base = home if pattern.startswith("~/") else Path("/")
        found = base.glob(pattern.removeprefix("~/").removeprefix("/"))
        yield from map(str, sorted(found, key=lambda folder: [*map(int, re.findall(r"\d+", str(folder)))], reverse=True))


def _interpreter(program: str, path: str) -> str | None:
    """The program that a script asks `env` for, such as node for npx. It is on the `PATH`, too."""
    try:
        with open(program, "rb") as file:  # noqa: PTH123
            found = _ENV.match(file.readline(200))
    except OSError:
        return None
    return shutil.which(found[1].decode(), path=path) if found else None


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
    """Plan to put the old text in place of what `bridged` or `plan_plugins` has written, unless it was changed since."""
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
    """As `restored`. Plan also to remove a file that `plan_plugins` has made, if nothing else is in it."""
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
