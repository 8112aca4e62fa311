"""What an edit of the policy did; and the loop of `mcpguard policy edit`: editor, check, question."""

import sys
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from mcpguard.cli import _errors, _policy_show
from mcpguard.cli._text import warn
from mcpguard.errors import ExitStatus, McpguardError, PolicyError
from mcpguard.policy.explain import series
from mcpguard.policy.lint import still_capped, warnings
from mcpguard.policy.model import Rule
from mcpguard.text.printing import plural, printable
from mcpguard.text.times import span

if TYPE_CHECKING:  # loads tomli_w
    from mcpguard.policy.editing import Edit
    from mcpguard.policy.writing import Draft

OBSERVING: Final = "The policy is in observe mode, so nothing is denied: mcpguard policy mode enforce"
"""Printed after a rule was set."""


def say_new_file(path: Path, edit: "Edit", *, named: bool) -> None:
    """Say if an edit made the file.

    Args:
        path: The file.
        edit: The edit.
        named: Whether an option or a variable names the file. Then no policy was in force without it.
    """
    if edit.is_new_file:
        rules = plural(len(edit.before.rules), "starter rule")
        were = "" if named else ", which were in force without a file"
        click.echo(printable(f"{path}: new file with the {rules}{were}"))


def what_changed(edit: "Edit", at: int) -> str:
    """What an edit did to a rule, as a clause."""
    if edit.is_unchanged:
        return f"rule {at + 1} is unchanged"
    if at >= len(edit.before.rules):
        return f"added rule {at + 1}"
    old, new = edit.before.rules[at], edit.after.rules[at]
    was = [old.limits_text] if old.limits_text != new.limits_text else []
    was += [_waiting(old)] if old.wait_us != new.wait_us else []
    was += ["in observe mode" if old.observe else "enforced"] if old.observe != new.observe else []
    was += [f"named {old.name!r}" if old.name else "without a name"] if old.name != new.name else []
    return f"changed rule {at + 1}{f' (it was {series(was)})' if was else ''}"


def _waiting(rule: Rule) -> str:
    return "without a wait" if rule.wait_us is None else f"with a wait of {span(rule.wait_us)}"


def edit(path: Path, *, tiers: Collection[str]) -> int:
    """Open a policy file in the editor until its text is valid, or the user decides otherwise.

    Args:
        path: The file.
        tiers: Tiers that are used here beside the usual ones.

    Returns:
        The exit status.

    Raises:
        PolicyError: The text is not valid, and there is no terminal to ask.
        McpguardError: The editor cannot be started, or the file cannot be written.
    """
    from mcpguard.policy.writing import draft_of

    with draft_of(path) as draft:
        while True:
            _open_editor(draft.file)
            try:
                policy = draft.check()
            except PolicyError as error:
                answer = _answer(draft, error, path)
                if answer == "e":
                    continue
                if answer == "s":
                    draft.save()
                    click.echo(printable(f"{path}: saved with errors; running servers keep the last valid policy"), err=True)
                else:
                    click.echo(printable(f"{path}: the changes were discarded"), err=True)
                return error.exit_status
            if draft.is_changed:
                draft.save()
            unchanged = "" if draft.is_changed else " (unchanged)"
            click.echo(printable(f"{path}: OK, {_policy_show.counted(policy)}{unchanged}"))
            for warning in [*warnings(policy, tiers=tiers), *still_capped(policy).warnings]:
                warn(warning)
            return ExitStatus.OK


def _open_editor(file: Path) -> None:
    try:
        click.edit(filename=str(file))
    except click.ClickException as error:
        raise McpguardError(f"the editor: {error.format_message()}", "set VISUAL or EDITOR to the editor's command") from error
    except ValueError as error:  # click splits the command into words as a shell does
        raise McpguardError(f"VISUAL or EDITOR is not a command: {error}", "close each quotation mark") from error


def _answer(draft: "Draft", error: PolicyError, path: Path) -> str:
    """What to do with a text that is not valid: `e` to edit it again, `d` to discard it, `s` to save it."""
    if not (draft.is_changed and sys.stdin and sys.stdin.isatty()):
        if draft.is_changed:
            click.echo(printable(f"{path}: not saved, because the text has errors"), err=True)
        raise error
    click.echo("\n".join(_errors.lines(error)), err=True)
    question = "Edit again (e), discard the changes (d), or save anyway (s)?"
    try:
        answer = click.prompt(question, type=click.Choice(["e", "d", "s"]), default="e", show_choices=False, err=True)
    except click.Abort:  # the end of the input, or Ctrl-C
        click.echo(err=True)
        return "d"
    return str(answer)
