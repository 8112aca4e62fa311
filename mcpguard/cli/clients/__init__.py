"""`mcpguard install`, `uninstall` and `clients`: the servers in clients' files; and how a command line names clients."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import click
from click.shell_completion import CompletionItem

from mcpguard.cli.options import all_of
from mcpguard.clients.catalog import BY_KEY, CLIENTS, Client
from mcpguard.clients.discovery import Machine, Source, readable_entries, sources
from mcpguard.errors import McpguardError, UsageError, did_you_mean
from mcpguard.files import named_path

NO_SERVERS: Final = "no client with servers is found"


def complete_clients(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The clients that are found on this machine."""
    del ctx, param
    titles = {source.client.key: source.client.title for source in _found(None)}
    return [CompletionItem(key, help=title) for key, title in titles.items() if key.startswith(incomplete)]


def complete_servers(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The servers in the clients' files."""
    del param
    found = _found(ctx.params.get("project"))
    names = {entry.name: source.client.title for source in found for entry in readable_entries(source)}
    return [CompletionItem(name, help=title) for name, title in sorted(names.items()) if name.startswith(incomplete)]


def _found(project: str | None) -> list[Source]:
    """The files of clients; none instead of an error."""
    try:
        return sources(Machine.this(), project=project_folder(project))
    except (OSError, McpguardError):
        return []


project_option = click.option(
    "--project", metavar="DIR", help="Use the files of the project in DIR instead of your account's.", type=click.Path()
)


entry_options = all_of(
    click.option(
        "--server",
        metavar="NAME",
        shell_complete=complete_servers,
        help="The server. Without COMMAND, it is started as your client's file says.",
    ),
    click.option(
        "--client",
        metavar="CLIENT",
        shell_complete=complete_clients,
        help="The client whose file has the server, if several have one of this name.",
    ),
)
"""The options of a command that starts a server."""


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
            raise UsageError(f"no such client: {key}", did_you_mean(key.replace(" ", "-"), BY_KEY))
    return [BY_KEY[key] for key in dict.fromkeys(keys)] or list(CLIENTS)
