"""`mcpguard policy edit` and `mcpguard policy init`: the policy file as a text."""

import os
import sys
from pathlib import Path

import click

from mcpguard import config
from mcpguard.cli.base import Command
from mcpguard.cli.errors import lines
from mcpguard.cli.options import policy_option
from mcpguard.cli.policy.show import counted
from mcpguard.cli.present import echo, warn
from mcpguard.configured_identity import used_tiers
from mcpguard.errors import ExitStatus, McpguardError, PolicyError
from mcpguard.policy.lint import still_capped, warnings
from mcpguard.policy.parse import STARTER, parse
from mcpguard.policy.writing import Draft, begin, draft_of


@click.command("edit", Command)
@policy_option
def edit(policy: str | None) -> int:
    """Open a copy of the policy file in the editor that VISUAL or EDITOR names, check it, and save it if it is valid.

    If the text has errors, mcpguard asks whether to edit it again, to discard it, or to save it anyway. Without a terminal it
    discards the text. If there is no policy file, it first creates one with the starter rules.

    \b
    Example:
      EDITOR=nano mcpguard policy edit
    """
    settings = config.load(os.environ, policy=policy)
    path = settings.policy
    with draft_of(path) as draft:
        while True:
            _open_editor(draft.file)
            try:
                found = draft.check()
            except PolicyError as error:
                answer = _answer(draft, error, path)
                if answer == "e":
                    continue
                if answer == "s":
                    draft.save()
                    echo(f"{path}: saved with errors; running servers keep the last valid policy", err=True)
                else:
                    echo(f"{path}: the changes were discarded", err=True)
                return error.exit_status
            if draft.is_changed:
                draft.save()
            unchanged = "" if draft.is_changed else " (unchanged)"
            echo(f"{path}: OK, {counted(found)}{unchanged}")
            for warning in [*warnings(found, tiers=used_tiers(settings)), *still_capped(found).warnings]:
                warn(warning)
            return ExitStatus.OK


def _open_editor(file: Path) -> None:
    try:
        click.edit(filename=str(file))
    except click.ClickException as error:
        raise McpguardError(f"the editor: {error.format_message()}", "set VISUAL or EDITOR to the editor's command") from error
    except ValueError as error:  # click splits the command into words as a shell does
        raise McpguardError(f"VISUAL or EDITOR is not a command: {error}", "close each quotation mark") from error


def _answer(draft: Draft, error: PolicyError, path: Path) -> str:
    """What to do with a text that is not valid: `e` to edit it again, `d` to discard it, `s` to save it."""
    if not (draft.is_changed and sys.stdin and sys.stdin.isatty()):
        if draft.is_changed:
            echo(f"{path}: not saved, because the text has errors", err=True)
        raise error
    click.echo("\n".join(lines(error)), err=True)
    question = "Edit again (e), discard the changes (d), or save anyway (s)?"
    try:
        answer = click.prompt(question, type=click.Choice(["e", "d", "s"]), default="e", show_choices=False, err=True)
    except click.Abort:  # the end of the input, or Ctrl-C
        click.echo(err=True)
        return "d"
    return str(answer)


@click.command("init", Command)
@policy_option
def init(policy: str | None) -> None:
    """Write the starter rules to the policy file. They apply while there is no such file.

    \b
    Example:
      mcpguard policy init
    """
    path = config.load(os.environ, policy=policy).policy
    if not begin(path):
        raise McpguardError(f"{path} already exists", "change it with mcpguard policy set or mcpguard policy edit")
    echo(f"{path}: wrote {len(parse(STARTER).rules)} starter rules")
