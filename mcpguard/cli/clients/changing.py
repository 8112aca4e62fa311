"""What `install`, `uninstall` and `clients` have in common: their arguments, the diff, and what is printed at the end."""

import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import click
from click.shell_completion import CompletionItem

from mcpguard import config
from mcpguard.cli.options import all_of, require_terminal, yes_option
from mcpguard.cli.present import echo, is_coloured, paragraph, warn
from mcpguard.clients.catalog import BY_KEY, CLIENTS, Client
from mcpguard.clients.discovery import Fault, Machine, Source, client_paths, readable_entries, sources
from mcpguard.clients.plan import Change, Outcome, Plan
from mcpguard.clients.preview import diff
from mcpguard.configured_identity import configured_identity
from mcpguard.errors import ExitStatus, McpguardError, UsageError, closest_word
from mcpguard.files import named_path
from mcpguard.policy.file import PolicyFile
from mcpguard.policy.model import Policy
from mcpguard.text.printing import printable
from mcpguard.text.redaction import redacted

NO_SERVERS: Final = "no client with servers is found"


class Words(NamedTuple):
    """What a command says.

    Attributes:
        command: Its name.
        done: What was done with a server.
        kept: What holds for a server that needs no change.
        mended: What was done with a server whose mcpguard was gone.
    """

    command: str
    done: str
    kept: str
    mended: str = ""


INSTALL: Final = Words("install", "guarded", "guarded already", "its mcpguard is this one now")
UNINSTALL: Final = Words("uninstall", "no longer guarded", "not guarded")


class Chosen(NamedTuple):
    """What a command line chooses.

    Attributes:
        machine: The account.
        clients: The clients.
        project: The folder of `--project`.
        sources: The files of the clients that exist.
        is_named: Whether the clients are named.
    """

    machine: Machine
    clients: list[Client]
    project: Path | None
    sources: list[Source]
    is_named: bool

    @property
    def present(self) -> list[Client]:
        """The clients that have a file."""
        return list(dict.fromkeys(source.client for source in self.sources))


def complete_clients(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The clients that are found on this machine."""
    del ctx, param
    try:
        titles = {source.client.key: source.client.title for source in sources(Machine.this())}
    except (OSError, McpguardError):
        return []
    return [CompletionItem(key, help=title) for key, title in titles.items() if key.startswith(incomplete)]


def complete_servers(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The servers in the clients' files."""
    del param
    try:
        found = sources(Machine.this(), project=project_folder(ctx.params.get("project")))
    except (OSError, McpguardError):
        return []
    names = {entry.name: source.client.title for source in found for entry in readable_entries(source)}
    return [CompletionItem(name, help=title) for name, title in sorted(names.items()) if name.startswith(incomplete)]


project_option = click.option(
    "--project", metavar="DIR", help="Use the files of the project in DIR instead of your account's.", type=click.Path()
)

change_options = all_of(
    click.argument("clients", nargs=-1, metavar="[CLIENT]...", shell_complete=complete_clients),
    click.option(
        "--server",
        "servers",
        metavar="NAME",
        multiple=True,
        help="Only the server with this name. May be repeated.",
        shell_complete=complete_servers,
    ),
    project_option,
)

confirm_options = all_of(
    click.option("--dry-run", is_flag=True, help="Print the changes as a diff, and change nothing."),
    yes_option,
)


def project_folder(name: str | None) -> Path | None:
    """The folder of `--project`.

    Raises:
        UsageError: There is no such folder.
        ConfigError: The working folder, to which the name is relative, no longer exists.
    """
    if name is None:
        return None
    folder = named_path(name, where="--project")
    if not os.path.isdir(folder):  # noqa: PTH112 - `Path.is_dir` raises without permission
        raise UsageError(f"--project: {name}: no such folder", "name the folder that holds the project's files")
    return folder


def named_clients(keys: Sequence[str]) -> list[Client]:
    """The clients with these keys; all clients without keys.

    Raises:
        UsageError: There is no such client.
    """
    for key in keys:
        if key not in BY_KEY:
            near = closest_word(key.lower().replace(" ", "-"), BY_KEY)
            hint = f"did you mean {near}?" if near else f"use one of: {' '.join(BY_KEY)}"
            raise UsageError(f"no such client: {key}", hint)
    return [BY_KEY[key] for key in dict.fromkeys(keys)] or list(CLIENTS)


def check_settings() -> None:
    """Check the settings that servers would start with. They include the variables that are written as options.

    Raises:
        ConfigError: A variable or a setting is not valid.
    """
    settings = config.load(os.environ)
    _ = settings.address, configured_identity(settings, "server")


def chosen(keys: Sequence[str], project: str | None) -> Chosen:
    """What the command line chooses.

    Raises:
        UsageError: There is no such client or no such folder.
    """
    clients, machine, folder = named_clients(keys), Machine.this(), project_folder(project)
    return Chosen(machine, clients, folder, sources(machine, clients, folder), is_named=bool(keys))


def warn_of_missing_hooks(chosen: Chosen) -> None:
    """Warn of the policy's rules for subagents of the chosen clients, if these have no hook."""
    from mcpguard.clients.missing_hooks import missing_hooks

    settings = config.load(os.environ)
    policy = PolicyFile(settings.policy, named=settings.policy_named).begin()
    if isinstance(policy, Policy):
        for one in missing_hooks(policy, chosen.present):
            warn(str(one))


def with_servers(clients: Iterable[Client], plan: Plan, servers: Sequence[str]) -> list[Client]:
    """The clients that have one of the named servers; all clients if none is named."""
    have = {outcome.source.client for outcome in plan.outcomes}
    return [client for client in clients if not servers or client in have]


def without_hook(chosen: Chosen) -> list[Fault]:
    """A fault for each of the named clients that has no hook."""
    names = [client.title for client in chosen.clients if chosen.is_named and client.hook is None]
    able = ", ".join(client.key for client in CLIENTS if client.hook)
    return [Fault(f"{name}: mcpguard has no hook for it", f"use one of: {able}") for name in names]


def _missing(chosen: Chosen) -> Iterator[Fault]:
    """A fault for each of the named clients that has no file. It says where the file would be."""
    have = {source.client.key for source in chosen.sources}
    for client in chosen.clients if chosen.is_named else ():
        if client.key not in have:
            paths = [str(path) for path in client_paths(chosen.machine, client, chosen.project)]
            if paths:
                yield Fault(f"{client.title}: no file {paths[0]}", "add a server in the client first")
            else:
                yield Fault(f"{client.title}: it has no files in a project", "leave out --project")


def _nothing_to_guard(chosen: Chosen) -> Iterator[Fault]:
    """A fault for each of the named clients that has no file, or for no file at all."""
    yield from _missing(chosen)
    if not chosen.sources and not chosen.is_named:
        where = f" in {chosen.project}" if chosen.project else ""
        yield Fault(
            f"no file of a client is found{where}", "add a server in a client first; mcpguard install --help names the clients"
        )


def _unknown_servers(servers: Iterable[str], plan: Plan) -> Iterator[Fault]:
    """A fault for each of the named servers that no file has, or that cannot be changed."""
    known = plan.servers
    for server in dict.fromkeys(servers):
        outcomes = [outcome for outcome in plan.outcomes if outcome.server == server]
        if server not in known:
            near = closest_word(server, known)
            hint = f"did you mean {near}?" if near else f"use one of: {', '.join(sorted(known))}" if known else ""
            yield Fault(f"no file has a server named {server}", hint)
        elif outcomes and all(outcome.action == "leave" for outcome in outcomes):
            yield Fault(f"{server}: not changed: {outcomes[0].detail}")


def carry_out(plan: Plan, chosen: Chosen, servers: Sequence[str], words: Words, *, dry_run: bool, yes: bool) -> int:
    """Show a plan, ask, change the files, and print what was done; return the exit status."""
    missing = _nothing_to_guard(chosen) if words is INSTALL else ()
    status = _complain([*plan.faults, *missing, *_unknown_servers(servers, plan)])
    changes = plan.changes
    if changes and not _agreed(changes, words, dry_run=dry_run, yes=yes):
        if dry_run:
            return status
        click.echo("nothing was changed", err=True)
        return ExitStatus.FAILURE
    errors = {change.file: error for change, error in plan.apply() if error} if changes else {}
    absent = list(_missing(chosen)) if words is UNINSTALL else []
    for one in absent:
        echo(one.message)
    if not (plan.outcomes or plan.hooks or absent or status):
        click.echo(NO_SERVERS)
    failed = {os.path.realpath(file) for file in errors}  # a file can have several names
    _report(plan, failed, words)
    steps = plan.steps({os.path.realpath(change.file) for change in changes} - failed)
    if steps:
        click.echo("\nTo make the changes take effect:")
    for client, step in steps.items():
        paragraph(f"  {client.title}: {step}")
    return max(status, _complain(errors.values()))


def _agreed(changes: Sequence[Change], words: Words, *, dry_run: bool, yes: bool) -> bool:
    """Print the diff, and ask unless `--yes` was given. With `--dry-run` the answer is no.

    Raises:
        UsageError: There is no terminal to ask on.
    """
    if yes and not dry_run:
        return True
    if not dry_run:
        require_terminal(words.command, "add --yes to change the files without asking, or --dry-run to see the changes")
    for change in changes:
        for line in diff(change):
            click.echo(_coloured(printable(line)), err=not dry_run)
    if dry_run:
        return False
    what = f"{len(changes)} files" if len(changes) > 1 else str(changes[0].file)
    return click.confirm(f"Change {printable(what)}?", err=True)


def _coloured(line: str) -> str:
    if not is_coloured():
        return line
    colour = {"+": "green", "-": "red", "@": "cyan"}[line[0]]
    return click.style(line, fg=colour, bold=line.startswith(("+++", "---")) or None)


def _report(plan: Plan, failed: Collection[str], words: Words) -> None:
    """Print a paragraph for each file: which servers were changed, which were not, and why.

    Args:
        plan: The plan.
        failed: The files that could not be changed, with all links followed. They are left out.
        words: What the command says.
    """
    actions = {"guard": words.done, "unguard": words.done, "mend": words.mended, "keep": words.kept, "leave": "not changed"}
    places: dict[str, list[Outcome]] = {}
    for outcome in plan.outcomes:
        if os.path.realpath(outcome.source.file) not in failed:
            places.setdefault(outcome.source.place, []).append(outcome)
    for place, outcomes in places.items():
        echo(place)
        for outcome in outcomes:
            paragraph(f"  {outcome.server}: {actions[outcome.action]}{f' ({outcome.detail})' if outcome.detail else ''}")
    for hook in plan.hooks:
        if os.path.realpath(hook.file) not in failed:
            paragraph(f"{hook.client.title}, {hook.file}: {hook.text}")


def _complain(faults: Iterable[McpguardError]) -> ExitStatus:
    """Print a line for each fault, with its hint; return the exit status."""
    status = ExitStatus.OK
    for fault in faults:
        status = ExitStatus.FAILURE
        hint = f" (hint: {fault.hint})" if fault.hint else ""
        echo(redacted(f"mcpguard: {fault.message}{hint}"), err=True)
    return status
