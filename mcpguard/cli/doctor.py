"""`mcpguard doctor`: checks this installation, and a server behind it."""

import contextlib
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

import click

from mcpguard import config
from mcpguard.cli import run
from mcpguard.cli.clients import entry_options, named_clients
from mcpguard.cli.commands import Command
from mcpguard.cli.names import files
from mcpguard.cli.present import echo_json, paragraph
from mcpguard.doctor.check import Check
from mcpguard.doctor.checkup import checkup
from mcpguard.errors import ConfigError, ExitStatus, UsageError
from mcpguard.text.printing import plural, printable

_STYLES: Final = {"ok": "green", "note": "yellow", "FAIL": "red"}


@click.command("doctor", Command, context_settings=run.run.context_settings)
@entry_options
@click.option("--allow-unguarded", is_flag=True, help="Do not fail because a server is unguarded.")
@click.option("--notify", is_flag=True, help="Send a message by each [[notify]] of config.toml.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list of objects: check, ok, detail, hint.")
@click.argument("argv", nargs=-1, type=click.UNPROCESSED, metavar="[[--] COMMAND [ARG]...]", shell_complete=files)
def doctor(argv: Sequence[str], client: str | None, as_json: bool, allow_unguarded: bool, notify: bool, **options: Any) -> int:
    """Check this installation: PATH, config.toml, policy, store, user, agent, token and keys. Prints a line for each check.

    Also checks the files, hooks and plugins of your clients, and those of the project in the current folder: how many servers
    are guarded, and by which mcpguard. If one is unguarded, the check fails. Nothing that these files name is started.

    With --server or COMMAND, it also starts that server behind mcpguard as a client would, and lists its tools with the rules
    that apply. No tool is called. For a server of a project's file, give the COMMAND. It takes the options of `run`, so that
    you can paste the arguments of a client's entry.

    "ok" means that all is well, "note" that something could be better, "FAIL" that something is broken. If a check failed, the
    exit status is 1. Secrets are not shown.

    \b
    Examples:
      mcpguard doctor
      mcpguard doctor --allow-unguarded
      mcpguard doctor --notify
      mcpguard doctor --json | jq '.[] | select(.ok | not)'
      mcpguard doctor --server crm
      mcpguard doctor --client cursor --server crm
      mcpguard doctor --server crm -- npx -y @acme/crm-server
    """
    argv, options, folder = server_command(argv, options, client, command="doctor")
    found = _all(argv, options, folder, allow_unguarded=allow_unguarded, notify=notify)
    if as_json:
        results = list(found)
        echo_json([one._asdict() for one in results], indent=2)
    else:
        results = list(_shown(found))
        bad = sum(not one.ok for one in results)
        checks = plural(len(results), "check")
        click.echo(f"{bad} of {checks} failed" if bad else f"{checks}, none failed")
    return ExitStatus.OK if all(one.ok for one in results) else ExitStatus.FAILURE


# The arguments of a client's entry can be pasted: `doctor` takes the options of `run`
doctor.params[1:1] = [param for param in run.run.params if isinstance(param, click.Option) and param.name != "server"]


def server_command(
    argv: Sequence[str], options: dict[str, Any], client: str | None, *, command: str
) -> tuple[Sequence[str], dict[str, Any], str]:
    """How a server is started: by the command that is given, or as a client's file says. Sets the variables of that file.

    Args:
        argv: The words after the options.
        options: The options of `run`, `server` among them.
        client: The client whose file it is; None for any client.
        command: The command of mcpguard, for hints.

    Returns:
        The server's own command, the options of `run`, and the folder in which it starts; empty for the working folder.

    Raises:
        UsageError: The options name no server, or not one.
    """
    folder = ""
    if client is not None:
        named_clients([client])
        if argv or not options["server"]:
            raise UsageError("--client: it says in which client's file --server is", "add --server NAME, and no command")
    if options["server"] and not argv:
        from mcpguard.doctor.clients import entry_of

        entry = entry_of(options["server"], os.environ, client, command=command)
        try:
            os.environ.update(entry.env)
        except (OSError, ValueError) as error:
            what = f"--server: the variables of {options['server']} cannot be set: {printable(str(error))}"
            raise UsageError(what, "correct its env in the client's file") from error
        argv, folder = entry.words, entry.cwd
        if entry.guard:  # the entry names its server itself
            options["server"] = None
    return *run.without_guard(argv, options), folder


def _all(argv: Sequence[str], options: dict[str, Any], folder: str, *, allow_unguarded: bool, notify: bool) -> Iterator[Check]:
    """The checks of this machine, and those of the server if there is a command."""
    read = {key: value for key, value in options.items() if key not in {"observe", "quiet"}}
    yield from checkup(os.environ, allow_unguarded=allow_unguarded, notify=notify, **read)
    if not argv:
        return
    with contextlib.suppress(ConfigError):  # the checks before have reported it
        settings = config.load(os.environ, **read)
        from mcpguard.doctor import server  # loads mcp

        yield from server.checks(settings, argv, options=run.words(options), server=options["server"], folder=folder)


def _shown(found: Iterable[Check]) -> Iterator[Check]:
    """Print each check as soon as it is known."""
    for one in found:
        word = "note" if one.is_advice else "ok" if one.ok else "FAIL"
        label = click.style(f"{word:4}", fg=_STYLES[word])
        paragraph(f"{one.check}: {one.detail}", indent=" " * 6, label=f"{label}  ")
        if one.hint:
            paragraph(one.hint, indent=" " * 12, label="      hint: ")
        yield one
