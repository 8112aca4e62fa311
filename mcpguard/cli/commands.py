"""The program's commands, the classes of commands and groups, and how commands behave beside calls."""

import contextlib
import importlib
import os
import signal
from collections.abc import Mapping
from typing import Any, Final

import click

from mcpguard import __version__
from mcpguard.errors import UsageError, closest_word

_NICENESS: Final = 10
"""With this nice value a process gets about a tenth of the time of a usual one, if both want all of a core."""


class _ShortHelp(click.Command):
    """A command with `-h`, whatever its context: click keeps the help option of the first context."""

    def get_help_option_names(self, ctx: click.Context) -> list[str]:
        """See `click.Command`."""
        del ctx
        return ["-h", "--help"]


class Command(_ShortHelp):
    """A command. An option with one value that is given several times has the last one."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """See `click.Command`.

        Raises:
            click.UsageError: With this command's context, so that the hint can name its help.
        """
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as error:
            error.ctx = error.ctx or ctx
            raise

    def invoke(self, ctx: click.Context) -> Any:
        """See `click.Command`. From here on Ctrl-C raises KeyboardInterrupt, so that the command can clean up."""
        if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # set by `__main__`
            signal.signal(signal.SIGINT, signal.default_int_handler)
        return super().invoke(ctx)


class _Part(click.Command):
    """A command of a group, which is loaded when it is used: help and completion need only its line.

    Args:
        name: Its name.
        place: `module:function` below `mcpguard.cli`.
        line: Its line in the group's help.
    """

    def __init__(self, name: str, place: str, line: str) -> None:
        super().__init__(name, short_help=line)
        self._place = place

    def loaded(self) -> click.Command:
        """The command itself."""
        module, _, function = self._place.partition(":")
        command: click.Command = getattr(importlib.import_module(f"mcpguard.cli.{module}"), function)
        return command

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        """See `click.Command`."""
        return self.loaded().make_context(*args, **kwargs)


class CommandGroup(_ShortHelp, click.Group):
    """A group of commands.

    Args:
        args: As for `click.Group`.
        parts: Its commands by name: `module:function` below `mcpguard.cli`, and its line of help.
        kwargs: As for `click.Group`.
    """

    def __init__(self, *args: Any, parts: Mapping[str, tuple[str, str]], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.parts = {name: _Part(name, *part) for name, part in parts.items()}
        self.commands.update(self.parts)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """See `click.Group`, which sorts them."""
        del ctx
        return list(self.commands)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        """See `click.Group`.

        Raises:
            UsageError: There is no such command. The hint is the command that is probably meant.
        """
        word = args[0]
        if word not in self.parts and not word.startswith("-"):
            raise UsageError(f"no such command: {word}", self._probably(ctx, word))
        return super().resolve_command(ctx, args)

    def _probably(self, ctx: click.Context, word: str) -> str:
        """The hint for a command that does not exist."""
        groups = {name: group for name, part in self.parts.items() if isinstance(group := part.loaded(), CommandGroup)}
        inner = (f"{name} {word}" for name, group in groups.items() if word in group.parts)
        meant = next(inner, None) or closest_word(word, self.parts)
        return f"did you mean {ctx.command_path} {meant}?" if meant else f"use one of: {' '.join(self.parts)}"


def give_way() -> None:
    """Let calls have the processor before this process, which reads much. Windows has no such priority."""
    if hasattr(os, "nice"):
        with contextlib.suppress(OSError):  # a sandbox may forbid it
            os.nice(_NICENESS)


@click.group(
    cls=CommandGroup,
    parts={
        "run": ("run:run", "start a server behind mcpguard"),
        "install": ("clients.install:install", "make your clients start their servers through mcpguard"),
        "uninstall": ("clients.install:uninstall", "undo install"),
        "clients": ("clients:clients", "list the clients, their servers, and which are guarded"),
        "policy": ("commands:policy", "show, check, explain and edit limits"),
        "audit": ("commands:audit", "read the audit log"),
        "usage": ("usage:usage", "show how full each counter is"),
        "reset": ("usage:reset", "empty counters"),
        "doctor": ("doctor:doctor", "check this installation, and a server behind it"),
        "whoami": ("doctor:whoami", "show which user and agent a server would have, and why"),
        "hook": ("run:hook", "tell a client's subagents apart"),
        "completion": ("completion:completion", "let your shell complete commands, options and names"),
        "demo": ("run:demo", "see mcpguard at work in ten seconds"),
    },
)
@click.version_option(__version__, prog_name="mcpguard", message="%(prog)s %(version)s")
def cli() -> None:
    """Limit how often AI agents call MCP tools, by user, tool and agent.

    `mcpguard install` puts mcpguard in front of the servers in your clients' files.

    \b
    Examples:
      mcpguard install --dry-run
      mcpguard run --server crm -- npx -y @acme/crm-server
      mcpguard policy set --user '*' --tool search_customers 100/1h
      mcpguard audit tail -f
    """


@click.group(
    "policy",
    CommandGroup,
    parts={
        "check": ("policy.file:check", "Check a policy file."),
        "edit": ("policy.file:edit", "Open the policy file in your editor."),
        "explain": ("policy.explain:explain", "Show which rules apply to a call, and what is left."),
        "init": ("policy.file:init", "Write the starter policy to a file."),
        "mode": ("policy.set:mode", "Only report denials, or deny."),
        "path": ("policy.file:path", "Print the path of the policy file."),
        "schema": ("policy.file:schema", "Print the JSON Schema of the policy, for editors."),
        "set": ("policy.set:set_", "Set a limit, a cap on calls in flight, or a cost."),
        "show": ("policy.show:show", "Show each rule, with a sentence that explains it."),
        "suggest": ("policy.suggest:suggest", "Suggest limits from the audit log, or for a server's tools."),
        "unset": ("policy.set:unset", "Remove a rule, a part of a rule, or a cost."),
    },
)
def policy() -> None:
    """Show, check, explain and edit the policy, which limits how often tools may be called, and by whom.

    Running servers obey an edit from their next call on. A file over 16 KiB (about 200 rules) is parsed in the background, so
    an edit of it applies shortly after that call.

    \b
    Examples:
      mcpguard policy show
      mcpguard policy set --user '*' --tool search_customers 20/1m 100/1h
    """


@click.group(
    "audit",
    CommandGroup,
    parts={
        "export": ("audit.export:export", "Write rows for other programs."),
        "prune": ("audit:prune", "Delete old rows."),
        "report": ("audit.stats:report", "Write an HTML page about a period."),
        "show": ("audit.show:show", "Explain one row."),
        "stats": ("audit.stats:stats", "Count calls by user, tool or hour."),
        "tail": ("audit.tail:tail", "Show the newest rows."),
    },
)
def audit() -> None:
    """Read the audit log, which has a row for each decision.

    \b
    Example:
      mcpguard audit tail -f
    """
