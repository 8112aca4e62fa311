"""Checks the files of clients, and their hooks; counts the servers that are guarded; and finds a server in the files."""

import os
import re
import shlex
from collections.abc import Iterator, Mapping

from mcpguard import __version__, run_options
from mcpguard.clients.catalog import BY_KEY, CLIENTS
from mcpguard.clients.coverage import UNGUARDED, Coverage, CoveredServer, counted, option
from mcpguard.clients.discovery import FileFault, HookFile, Machine, Source, hook_files, readable_entries, sources
from mcpguard.clients.entries import Entry
from mcpguard.clients.guards import Guards, NamedGuard
from mcpguard.clients.hooks import deciding, guard_of, ours, why_skipped
from mcpguard.clients.launcher import is_same
from mcpguard.doctor import Check, advice, failed, good
from mcpguard.errors import UsageError
from mcpguard.light_typing import Final
from mcpguard.text.redaction import masked_words

_FILL_NOTHING: Final = ("claude-desktop", "codex", "zed", "goose")
"""The clients that pass `${A}` on as it is, for example to a shell."""

_VERSION: Final = re.compile(r"^[/A-Z].*[/\\]plugins[/\\]cache(?:[/\\][^/\\\n]+){3}", re.MULTILINE)
"""The folder of a plugin's version, which goes with an update: `install` has written it for a server that needs it."""

_VARIABLE: Final = re.compile(r"\$\{[^}]*\}|\{env:\w+\}")


def checks(machine: Machine, *, allow_unguarded: bool = False) -> Iterator[Check]:
    """Check the files and hooks of the account's clients, and of the project in the working folder; count the guarded servers.

    A client that is not found has no check.

    Args:
        machine: The account.
        allow_unguarded: Whether a server may be unguarded.
    """
    coverage = Coverage(machine)
    mends: dict[str, None] = {}  # what guards what is not guarded, for all clients at once
    told: dict[Check, None] = {}  # clients share files
    has_files = False
    for project in dict.fromkeys((None, machine.project)):
        for source in coverage.sources(project):
            has_files = True
            told |= dict.fromkeys(_file(coverage, source, mends))
        for place in hook_files(machine, project=project):
            told |= dict.fromkeys(_hook(machine, coverage, place))
    yield from told
    if not has_files:
        hint = "add a server in a client, then run mcpguard install; mcpguard install --help names the clients"
        yield advice("clients", "no client with servers is found on this machine", hint)
        return
    text, hint = counted(coverage.states()), "; ".join(mends) or "correct the entries that failed a check"
    if UNGUARDED not in coverage.states():
        yield good("servers guarded", text)
    elif allow_unguarded:
        yield advice("servers guarded", text, hint)
    else:
        yield failed("servers guarded", text, f"{hint}; or add --allow-unguarded if that is meant")


def _file(coverage: Coverage, source: Source, mends: dict[str, None]) -> Iterator[Check]:
    """Check a file with servers. What would guard those that are unguarded is added to `mends`."""
    name, install = source.place, f"mcpguard install {source.client.key}"
    try:
        found = coverage.servers(source)
    except FileFault as fault:
        yield failed(name, fault.message, fault.hint or "correct the file")
        return
    by_program: dict[str, list[CoveredServer]] = {}
    for one in found:
        if one.entry.guard:
            by_program.setdefault(one.entry.guard[0], []).append(one)
    wrong: list[Check] = []
    for same in by_program.values():
        look = "run mcpguard doctor in the container" if source.is_of_container else _instead(coverage)
        servers, guard = ", ".join(one.entry.name for one in same), same[0].guard
        wrong += _guard(coverage, name, servers, guard, f"{install}{option(source.folder)}", look) if guard else []
    for one in found:
        if one.entry.guard and run_options.parse([*one.entry.guard[1:], "command"]) is None:
            told = f"{one.entry.name}: mcpguard run does not accept its options"
            wrong.append(failed(name, told, "compare them with mcpguard run --help"))
    versions = _VERSION.findall("\n".join(word for one in found for word in (*one.entry.words, one.entry.cwd)))
    for folder in dict.fromkeys(folder for folder in versions if not os.path.lexists(folder)):
        wrong.append(failed(name, f"a folder of a plugin is gone: {folder}", install))
    yield from wrong
    unguarded = [one for one in found if one.state == UNGUARDED]
    text = counted((one.state for one in found), [one.entry.name for one in unguarded])
    if fixes := list(dict.fromkeys(one.fix for one in unguarded if one.entry.guard is None)):
        mends |= {fix.replace(install, "mcpguard install"): None for fix in fixes}
        yield advice(name, text, "; ".join(fixes))
    elif found and all(check.ok for check in wrong):
        yield good(name, text)


def _guard(coverage: Coverage, name: str, what: str, guard: NamedGuard, mend: str, look: str) -> list[Check]:
    """What is wrong with the mcpguard of some entries or of a hook; nothing if all is well.

    Args:
        coverage: Knows this mcpguard.
        name: The check.
        what: The servers, or the hook.
        guard: Their mcpguard.
        mend: The command that mends a mcpguard that is gone.
        look: What to do if the mcpguard cannot be examined from here.
    """
    instead = _instead(coverage)
    if guard.is_gone:
        return [failed(name, f"{what}: {guard.fault}", mend)]
    if guard.state == "unsafe":
        return [failed(name, f"{what}: {guard.fault}", instead)]
    if guard.state == "unseen":
        return [advice(name, f"{what}: {guard.fault}", look)]
    if guard.file and guard.version is None:
        return [advice(name, f"{what}: {guard.file}, version unknown", f"if it is not {__version__}, {instead}")]
    if guard.file and guard.version != __version__:
        told = f"{what}: {guard.file} is mcpguard {guard.version}; this is {__version__}"
        return [failed(name, told, f"upgrade it, or {instead}")]
    return []


def _instead(coverage: Coverage) -> str:
    """What to do about a mcpguard. `uninstall` would remove options and hooks with it."""
    return f"write {coverage.guards.own or 'the path of an installed mcpguard'} in its place in the file"


def _hook(machine: Machine, coverage: Coverage, place: HookFile) -> Iterator[Check]:
    """Check the hooks of mcpguard in a file, and in a project also the account's hook."""
    client, name = place.client, f"{place.client.title} (hook), {place.file}"
    try:
        found = {one.command: one for one in ours(place)}
    except FileFault as fault:
        yield failed(name, fault.message, fault.hint or "correct the file")
        return
    for command, one in found.items():
        mend = f"mcpguard install {client.key}{option(place.project)} {'--enforce' if one.decides else '--hook'}"
        guard, look = guard_of(command, coverage.guards, place.project), "remove the hook from the file, if you do not know it"
        wrong = _guard(coverage, name, command, guard, mend, look)
        skipped = why_skipped(machine, place, place.project) if one.decides and not wrong else None
        yield from ([failed(name, *skipped)] if skipped else wrong or [good(name, command)])
    for own in hook_files(machine, [client]) if place.project else ():
        yield from _account_hook(machine, own, place)


def _account_hook(machine: Machine, own: HookFile, place: HookFile) -> Iterator[Check]:
    """What is wrong with the account's deciding hook in a project alone; nothing if all is well."""
    name = f"{own.client.title} (hook), {own.file}"
    try:
        if not deciding(own) or is_same(own.file, place.file):
            return
    except FileFault:
        return  # it is told of the account
    skipped = why_skipped(machine, own, place.project)
    if skipped and skipped != why_skipped(machine, own, None):
        yield failed(name, *skipped)
    elif deciding(place):
        told = f"{place.file} has a deciding hook, too, so calls may count twice"
        yield failed(name, told, "remove one of them from its file")


def entry_of(server: str, environ: Mapping[str, str], client: str | None = None, *, command: str = "doctor") -> Entry:
    """The entry by which the clients on this machine start a server, with the folder in which it starts.

    No entry of a project's file is given: it may be somebody else's.

    Args:
        server: The server's name in the clients' files.
        environ: The environment.
        client: The client; None for any client.
        command: The command of mcpguard that starts it, for hints.

    Raises:
        UsageError: No client has the server, they start it differently, the client fills in a variable, or other accounts may
            change the mcpguard that it starts.
    """
    machine = Machine.this()
    clients = [BY_KEY[client]] if client else CLIENTS
    here = sources(machine, clients, machine.project) if machine.project else []
    files = (*sources(machine, clients), *here)
    known = [(source, entry) for source in files for entry in readable_entries(source) if entry.words]
    found = [one for one in known if one[1].name == server]
    found = [one for one in found if one[1].kind != "disabled"] or found
    found = [one for one in found if not one[0].project or one[0] in here] or found  # without those of other projects
    words = f"mcpguard {command} --server {shlex.quote(server)} --"
    again = f"give its command: {words} COMMAND"
    if not found:
        who = BY_KEY[client].title if client else "no client"
        names = " ".join(sorted({entry.name for _, entry in known}))
        text = f"--server: {who} has {'no' if client else 'a'} server {server} with a command"
        raise UsageError(text, f"use one of: {names}" if names else again)
    if len({(entry.own_words, frozenset(entry.env.items()), entry.cwd) for _, entry in found}) > 1:
        titles = {source.client.key: source.client.title for source, _ in found}
        start = f"{', '.join(titles.values())} {'start' if len(titles) > 1 else 'starts'}"
        hint = f"name one with --client: {' '.join(titles)}" if len(titles) > 1 else again
        raise UsageError(f"--server: {start} {server} with different commands, folders or variables", hint)
    chosen = [one for one in found if not one[0].folder]
    if not chosen:
        shown = shlex.join(masked_words(found[0][1].own_words))
        text = f"--server: {found[0][0].file} is a project's file, and {command} starts nothing that it names"
        raise UsageError(text, f"if you trust it, give its command: {words} {shown}")
    source, entry = next((one for one in chosen if one[1].guard), chosen[0])
    if entry.guard and (guard := Guards(environ).of_entry(source, entry.guard[0])).state == "unsafe":
        raise UsageError(f"--server: {server}: {guard.fault}", again)
    if entry.env_file:
        raise UsageError(f"--server: only the client reads the variables of {server} from {entry.env_file}", again)
    texts = (*entry.words, *entry.env.values(), entry.cwd) if source.client.key not in _FILL_NOTHING else ()
    if unknown := [name for text in texts for name in _VARIABLE.findall(text)]:
        raise UsageError(f"--server: only the client can fill in {' '.join(dict.fromkeys(unknown))} for {server}", again)
    cwd = entry.cwd or (source.project if os.path.isdir(source.project) else "")  # noqa: PTH112 - `Path.is_dir` raises
    return entry._replace(cwd=cwd)
