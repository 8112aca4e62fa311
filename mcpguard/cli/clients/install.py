"""`mcpguard install` and `uninstall`: make clients start their servers through mcpguard, and undo it.

A change is shown as the lines that change, with the values of variables and with secrets masked.
"""

import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any, Final

import click

from mcpguard import config
from mcpguard.cli.clients import NO_SERVERS, complete_clients, complete_servers, named_clients, project_folder, project_option
from mcpguard.cli.commands import Command
from mcpguard.cli.options import all_of, require_terminal, yes_option
from mcpguard.cli.present import coloured_diff, confirm, echo, paragraph, warn
from mcpguard.clients.catalog import CLIENTS, Client
from mcpguard.clients.coverage import missing_hooks
from mcpguard.clients.discovery import FileFault, Machine, client_paths, is_used, missing_files, sources
from mcpguard.clients.entries import ENV
from mcpguard.clients.hooks import idle_hooks, plan_hooks
from mcpguard.clients.installing import plan_servers, short_path_warnings
from mcpguard.clients.launcher import Launcher, launcher
from mcpguard.clients.plan import Change, ChangePlan, EntryOutcome
from mcpguard.config import Settings
from mcpguard.configured_identity import configured_identity
from mcpguard.documents.document import Dialect, Splice, is_blank, quoted, spliced
from mcpguard.documents.document import read as parsed
from mcpguard.documents.model import Array, Node, Object, Opaque, Scalar, plain
from mcpguard.errors import ExitStatus, McpguardError, did_you_mean
from mcpguard.identity.account import state_folder
from mcpguard.policy.file import PolicyFile
from mcpguard.policy.model import Policy
from mcpguard.text.printing import printable
from mcpguard.text.redaction import MASK, masked_output, masked_words, redacted

_DONE: Final = {
    "guard": "guarded",
    "unguard": "no longer guarded",
    "mend": "its mcpguard is this one now",
    "leave": "not changed",
}
"""What was done with a server, by the action of its outcome."""


def _change_options(hook: str) -> Callable[..., Any]:
    """The arguments of both commands. `hook` is the help of `--hook`."""
    server = "Only the server with this name. May be repeated."
    return all_of(
        click.argument("clients", nargs=-1, metavar="[CLIENT]...", shell_complete=complete_clients),
        click.option("--server", "servers", metavar="NAME", multiple=True, help=server, shell_complete=complete_servers),
        project_option,
        click.option("--hook", is_flag=True, help=hook),
        click.option("--dry-run", is_flag=True, help="Print the changes as a diff, and change nothing."),
        yes_option,
    )


@click.command("install", Command)
@_change_options("Also add the client's hook, which tells its subagents apart.")
@click.option("--bridge", is_flag=True, help="Also guard remote servers: they are reached through npx mcp-remote.")
@click.option(
    "--enforce", is_flag=True, help="Also add the client's deciding hook, which limits built-in tools and all servers."
)
def install(**given: Any) -> int:
    """Make clients start their stdio servers through mcpguard, so that the policy limits their calls.

    Without CLIENT, all clients that are found are changed; without --server, all their stdio servers. Only the command and the
    arguments of an entry are changed. Remote and disabled servers are left. A server that a plugin brings to Codex gets an
    entry of its own, which replaces the plugin's. mcpguard shows a diff and asks.
    `mcpguard uninstall` restores every file.

    With --enforce, the client asks mcpguard before each call of a tool: built-in tools such as WebSearch, remote servers, and
    servers of plugins are limited by the same policy. For claude-code, codex, copilot, gemini and cursor.

    If MCPGUARD_CONFIG, MCPGUARD_POLICY, MCPGUARD_STORE, MCPGUARD_USER, MCPGUARD_AGENT, MCPGUARD_DENIALS, MCPGUARD_OBSERVE or
    MCPGUARD_QUIET is set, it is written into each entry as an option. A guarded server stays as it is, unless its mcpguard no
    longer exists; then it gets the path of this one. Before a file is changed, it is copied to the folder "backups" in
    mcpguard's state folder.

    \b
    Clients: claude-desktop, claude-code, codex, cursor, vscode, copilot,
    windsurf, zed, gemini, qwen, opencode, cline, continue, goose, kiro,
    lm-studio.

    \b
    Examples:
      mcpguard install --dry-run
      mcpguard install cursor --server crm
      mcpguard install claude-code --hook
      mcpguard install claude-code codex --enforce
      mcpguard install zed --bridge
      mcpguard install --project . --yes
    """
    start = launcher(os.environ)
    settings = config.load(os.environ)
    _ = settings.address, configured_identity(settings, "server")  # raise what the servers would fail with
    return _change(settings, start, **given)


@click.command("uninstall", Command)
@_change_options("With --server: also remove the hooks of the clients that have the server.")
def uninstall(**given: Any) -> int:
    """Undo `mcpguard install`: clients start their servers directly again, and nothing limits their calls.

    Without CLIENT, all clients that are found are changed; without --server, all their servers, and their hooks. Only what
    `install` has added is removed, even if the client or you changed the file since then. Policy, counters and audit log stay.

    \b
    Examples:
      mcpguard uninstall --dry-run
      mcpguard uninstall cursor --server crm
    """
    return _change(None, None, **given)


def _change(
    settings: Settings | None, start: Launcher | None, *, clients: Sequence[str], servers: Sequence[str], project: str | None,
    hook: bool, dry_run: bool, yes: bool, bridge: bool = False, enforce: bool = False,
) -> int:  # fmt: skip
    """Plan the changes of both commands, show them, ask, change the files, and print what was done.

    Args:
        settings: The settings of this machine; None for `uninstall`.
        start: What starts mcpguard; None for `uninstall`.
        clients: The keys of the clients; empty for all that are found.
        servers: The names of the servers; empty for all.
        project: The folder of `--project`.
        hook: Whether to change the hooks, too.
        dry_run: Only show the changes.
        yes: Do not ask.
        bridge: Whether to guard remote servers, too.
        enforce: Whether the hooks are to decide calls.
    """
    wanted, machine, folder = named_clients(clients), Machine.this(), project_folder(project)
    found = sources(machine, wanted, folder)
    found += missing_files(machine, wanted) if start and not folder else []
    present = list(dict.fromkeys(source.client for source in found))
    if enforce:  # built-in tools need no server
        deciding = [client for client in wanted if client.hook and (clients or (not folder and is_used(machine, client)))]
        present = list(dict.fromkeys([*present, *deciding]))
    plan = ChangePlan(state_folder(os.environ), machine)
    plan_servers(plan, found, frozenset(servers), start, bridge=bridge)
    if hook or enforce or not (start or servers):
        have = {outcome.source.client for outcome in plan.outcomes}
        with_hook = [client for client in (present if start else wanted) if not servers or client in have]
        fail_closed = settings is not None and settings.on_unavailable == "deny"
        plan_hooks(plan, with_hook, folder, start, decide=enforce, fail_closed=fail_closed)
    faults = [*plan.faults, *_unknown_servers(servers, plan)]
    absent = [client for client in wanted if client not in present] if clients else []
    missing = [_missing(client, list(client_paths(machine, client, folder))) for client in absent]
    if start:
        faults += [*(_without_hook(wanted, decides=enforce) if clients and (hook or enforce) else ()), *missing]
        if not (present or clients):
            where = f" in {folder}" if folder else ""
            hint = "add a server in a client first; mcpguard install --help names the clients"
            faults.append(FileFault(f"no file of a client is found{where}", hint))
        for warning in (*start.warnings, *short_path_warnings(plan)) if plan.changes else ():
            warn(warning)
    status = _carry_out(plan, faults, [] if start else missing, dry_run=dry_run, yes=yes)
    if settings and not (hook or enforce):
        _warn_of_missing_hooks(settings, present)
    return status


def _missing(client: Client, paths: Sequence[Path]) -> FileFault:
    """The fault of a named client that has no file. It says where the file would be."""
    if paths:
        return FileFault(f"{client.title}: no file {paths[0]}", "add a server in the client first")
    return FileFault(f"{client.title}: it has no files in a project", "leave out --project")


def _without_hook(clients: Iterable[Client], *, decides: bool) -> Iterator[FileFault]:
    """A fault for each client that has no hook, or none that only leaves notes."""
    able = [client for client in CLIENTS if client.hook and (decides or client.hook.leaves_notes)]
    for client in clients:
        if client not in able:
            yield FileFault(f"{client.title}: mcpguard has no hook for it", f"use one of: {', '.join(one.key for one in able)}")


def _unknown_servers(servers: Iterable[str], plan: ChangePlan) -> Iterator[FileFault]:
    """A fault for each of the named servers that no file has, or that cannot be changed."""
    for server in dict.fromkeys(servers):
        outcomes = [outcome for outcome in plan.outcomes if outcome.server == server]
        if server not in plan.servers:
            yield FileFault(f"no file has a server named {server}", did_you_mean(server, sorted(plan.servers)))
        elif outcomes and all(outcome.action == "leave" for outcome in outcomes):
            yield FileFault(f"{server}: not changed: {outcomes[0].detail}")


def _warn_of_missing_hooks(settings: Settings, clients: Sequence[Client]) -> None:
    """Warn of the policy's rules for subagents of clients that have no hook."""
    policy = PolicyFile(settings.policy, named=settings.policy_named).begin()
    if isinstance(policy, Policy):
        for warning in missing_hooks(policy, clients).values():
            warn(warning)


def _carry_out(
    plan: ChangePlan, faults: Sequence[McpguardError], absent: Sequence[FileFault], *, dry_run: bool, yes: bool
) -> int:
    """Show a plan, ask, change the files, and print what was done; return the exit status.

    Args:
        plan: The plan.
        faults: What cannot be done.
        absent: What need not be done, since there is no file.
        dry_run: Only show the changes.
        yes: Do not ask.
    """
    status = _complain(faults)
    changes = plan.changes
    if changes and not _agreed(changes, dry_run=dry_run, yes=yes):
        if dry_run:
            return status
        click.echo("nothing was changed", err=True)
        return ExitStatus.FAILURE
    for one in absent:
        echo(one.message)
    if not (plan.outcomes or plan.hooks or absent or status):
        click.echo(NO_SERVERS)
    failed = plan.apply() if changes else []
    _report(plan)
    return max(status, _complain([*failed, *idle_hooks(plan)]))


def _agreed(changes: Sequence[Change], *, dry_run: bool, yes: bool) -> bool:
    """Print the diff, and ask unless `--yes` was given. With `--dry-run` the answer is no.

    Raises:
        UsageError: There is no terminal to ask on.
    """
    if yes and not dry_run:
        return True
    if not dry_run:
        hint = "add --yes to change the files without asking, or --dry-run to see the changes"
        require_terminal(click.get_current_context().info_name or "", hint)
    for change in changes:
        for line in diff(change):
            click.echo(coloured_diff(line), err=not dry_run)
    if dry_run:
        return False
    what = f"{len(changes)} files" if len(changes) > 1 else str(changes[0].file)
    return confirm(f"Change {printable(what)}?")


def _report(plan: ChangePlan) -> None:
    """Print which servers of each file were changed, which were not, and why; then what is done about hooks, and in clients."""
    places: dict[str, list[EntryOutcome]] = {}
    for outcome in plan.outcomes:
        places.setdefault(outcome.source.place, []).append(outcome)
    for place, outcomes in places.items():
        echo(place)
        for outcome in outcomes:
            detail = f" ({outcome.detail})" if outcome.detail else ""
            kept = "guarded already" if outcome.entry.guard else "not guarded"
            paragraph(f"  {outcome.server}: {_DONE.get(outcome.action, kept)}{detail}")
    for hook in plan.hooks:
        paragraph(f"{hook.place.client.title}, {hook.place.file}: {hook.text}")
    if plan.steps:
        click.echo("\nTo make the changes take effect:")
    for client, step in plan.steps.items():
        paragraph(f"  {client.title}: {step}")


def _complain(faults: Iterable[McpguardError]) -> ExitStatus:
    """Print a line for each fault, with its hint; return the exit status."""
    status = ExitStatus.OK
    for fault in faults:
        status = ExitStatus.FAILURE
        hint = f" (hint: {fault.hint})" if fault.hint else ""
        echo(redacted(f"mcpguard: {fault.message}{hint}"), err=True)
    return status


_LONG: Final = 200
"""Of a longer line only the parts that change are shown: some clients write a file in one line."""

_BESIDE: Final = 60
"""How many characters are shown beside the part of a long line that changes."""

_SHOWN: Final = ("args", "bash", "cmd", "command", "cwd", "matcher", "name", "powershell", "type")
"""The members whose texts are shown. Any other text may be a secret."""


def diff(change: Change) -> Iterator[str]:
    """A unified diff without context: the lines that change, as they are in the file. Parts of long lines have `…` around them.

    The time is proportional to the size of the file.
    """
    old, new = (_lines(data, change.dialect) for data in (change.old, change.new))
    before, after = (str(change.file) if data is not None else "/dev/null" for data in (change.old, change.new))
    yield f"--- {before}"
    yield f"+++ {after}"
    for kind, *hunk in SequenceMatcher(None, old, new).get_opcodes():
        if kind == "equal":
            continue
        gone = [masked_output(line, ()) for line in old[hunk[0] : hunk[1]]]
        come = [masked_output(line, ()) for line in new[hunk[2] : hunk[3]]]
        yield f"@@ -{_range(*hunk[:2])} +{_range(*hunk[2:])} @@"
        if any(len(line) > _LONG for line in (*gone, *come)):
            gone, come = _excerpts("\n".join(gone), "\n".join(come))
        yield from (f"-{line}" for line in gone)
        yield from (f"+{line}" for line in come)


def _lines(data: bytes | None, dialect: Dialect) -> list[str]:
    """The lines of a file, masked."""
    if data is None or is_blank(data):
        return []
    document = parsed(data, dialect)
    splices: list[Splice] = []
    for splice in sorted(set(_masks(document.text, document.root))):
        if not splices or splice.start >= splices[-1].end:  # an alias of YAML has the place of what it stands for
            splices.append(splice)
    text = spliced(document.text, splices).replace("\r\n", "\n")
    return text.removesuffix("\n").split("\n")


def _masks(text: str, node: Node, key: str = "", *, is_env: bool = False) -> Iterator[Splice]:
    """Replace the texts of a document that may be secret.

    Args:
        text: The document.
        node: A node of it.
        key: The name of the member that the node is the value of, or a part of the value.
        is_env: Whether the node is a variable, or a part of a table of variables.
    """
    if isinstance(node, Object):
        for child in node.children:
            yield from _masks(text, child.node, child.key, is_env=is_env or child.key in ENV)
    elif isinstance(node, Array) and (is_env or key not in _SHOWN):
        for child in node.children:
            yield from _masks(text, child.node, key, is_env=is_env)
    elif is_env or key not in _SHOWN or isinstance(node, Opaque):
        value = text if isinstance(node, Opaque) else plain(node)
        if value not in ("", None) and (is_env or isinstance(value, str)):
            yield Splice(node.start, node.end, re.sub(r"[^\r\n]+", f'"{MASK}"', text[node.start : node.end]))
    else:
        items = [child.node for child in node.children] if isinstance(node, Array) else [node]
        words = [str(item.value) if type(item) is Scalar else "" for item in items]
        for item, word, shown in zip(items, words, masked_words(words), strict=True):
            if type(item) is not Scalar:
                yield from _masks(text, item)
            elif shown != word:
                yield Splice(item.start, item.end, quoted(shown))


def _range(start: int, end: int) -> str:
    """Lines in the form of a unified diff."""
    return f"{start + 1 if start < end else start},{end - start}"


def _excerpts(*texts: str) -> list[list[str]]:
    """The lines of the part in which two texts differ."""
    start = max(0, len(os.path.commonprefix(texts)) - _BESIDE)  # noqa: RUF071 - of texts, not of paths
    backwards = [text[start:][::-1] for text in texts]
    alike = len(os.path.commonprefix(backwards))  # noqa: RUF071 - of texts, not of paths
    shown = []
    for text in texts:
        end = min(len(text), len(text) - alike + _BESIDE)
        part = f"{'…' if start else ''}{text[start:end]}{'…' if end < len(text) else ''}"
        shown.append(part.split("\n") if text else [])
    return shown
