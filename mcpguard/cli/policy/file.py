"""`mcpguard policy check`, `edit`, `init`, `path` and `schema`: the policy file as a text."""

import contextlib
import os
import re
from pathlib import Path
from typing import Any

import click

from mcpguard import config
from mcpguard.cli.commands import Command
from mcpguard.cli.options import files, json_option, policy_option, with_settings
from mcpguard.cli.policy.show import counted
from mcpguard.cli.present import can_ask, confirm, echo, echo_json, error_lines, warn
from mcpguard.clients.coverage import missing_hooks
from mcpguard.config import Settings
from mcpguard.config_schema import config_schema
from mcpguard.configured_identity import configured_tier, used_tiers
from mcpguard.documents.model import Unreadable, line_and_column, span
from mcpguard.documents.toml import parse as parse_toml
from mcpguard.errors import ConfigError, McpguardError, PolicyError, Problem, UsageError
from mcpguard.files import exposed, named_path, read_at_once
from mcpguard.policy.file import load
from mcpguard.policy.lint import place, still_capped, warnings
from mcpguard.policy.parse import STARTER, parse
from mcpguard.policy.schema import policy_schema, schema_text
from mcpguard.policy.writing import begin, draft_of, read
from mcpguard.reading.explaining import never_matched
from mcpguard.text.redaction import redacted

_Shown = dict[str, Any]


@click.command("check", Command)
@click.argument("file", required=False, metavar="[FILE]", shell_complete=files)
@policy_option
@json_option
def check(file: str | None, policy: str | None, as_json: bool) -> int | None:
    """Check FILE, or the policy in force, for errors and likely mistakes. FILE is the same as --policy FILE.

    The exit status is 0 if the policy is valid, with or without warnings, and 78 if it is not. Shows every error with its line.
    Warns of rules and limits that can never have an effect, of rules that match none of the newest calls in the audit log, of
    names that are probably wrong, and of other accounts that may change the policy, config.toml or the store. Names the rules
    that cap the calls of other rules more tightly, with the command that drops them.

    \b
    Examples:
      mcpguard policy check
      mcpguard policy check examples/policy.toml
    """
    if file is not None and policy is not None:
        raise UsageError("FILE and --policy both name the policy", "give only one of them")
    if file is not None:
        named_path(file, where="FILE")
    named = file if policy is None else policy
    path: str | None = None
    try:
        settings = config.load(os.environ, policy=named)
        path = str(settings.policy)
        found = load(settings.policy, named=settings.policy_named)
        missing = missing_hooks(found)
        unmatched = [] if found.is_starter else never_matched(found, settings, explained=missing)
        unlimited = found.tier_warning(configured_tier(settings))
        capped = still_capped(found, policy_option=["--policy", named] if named else [])
        found_warnings = [
            *warnings(found, tiers=used_tiers(settings)),
            *capped.warnings,
            *([unlimited] if unlimited else []),
            *missing.values(),
            *unmatched,
            *exposed(settings.files),
        ]
    except (ConfigError, PolicyError) as error:
        if not as_json:
            raise
        echo_json(_result(path, _wrong(error, path)), indent=2)
        return error.exit_status
    if as_json:
        file, text = (None, "") if found.is_starter else (path, read(settings.policy) or "")
        words = [("warning", one) for one in found_warnings] + [("note", one) for one in capped.notes]
        problems = [_about(level, one, file, text) for level, one in words]
        echo_json(_result(file, problems, rules=len(found.rules), warnings=found_warnings, notes=capped.notes), indent=2)
        return None
    source = f"starter policy (no file at {settings.policy})" if found.is_starter else str(settings.policy)
    echo(f"{source}: OK, {counted(found)}")
    for warning in found_warnings:
        echo(f"warning: {warning}")
    for note in capped.notes:
        echo(f"note: {note}")
    return None


def _result(file: str | None, problems: list[_Shown], **valid: Any) -> _Shown:
    """The result of a check: of a valid policy its `rules`, `warnings` and `notes`."""
    usual = {"file": file, "starter": bool(valid) and file is None, "rules": None, "problems": problems}
    return usual | {"errors": [] if valid else problems, "warnings": [], "notes": []} | valid


def _wrong(error: ConfigError | PolicyError, policy: str | None) -> list[_Shown]:
    """What is wrong with the policy or with the settings. An error of a file as a whole has no line."""
    if isinstance(error, ConfigError):
        return [_setting(error)]
    return [_shown("error", policy, one) for one in error.problems or [Problem(error.message, error.hint)]]


def _about(level: str, words: str, policy: str | None, text: str) -> _Shown:
    """A warning or a note, at the header of the table that it is about. `text` is that of the policy."""
    line, rule = place(words)
    header = "".join(text.split("\n")[line - 1 : line]).partition("#")[0].rstrip()
    width = len(header.lstrip())
    column = width and len(header) - width + 1
    return _shown(level, policy, Problem(words.removeprefix(f"line {line}: "), "", line, column, width, header, rule))


def _setting(error: ConfigError) -> _Shown:
    """An error whose message begins with the file and the key; or with an option or a variable, which have no place."""
    file, _, message = error.message.partition(": ")
    try:
        text = read_at_once(file).decode()
        root, keys = parse_toml(text), tuple(re.findall(r"[^'.: ]+", message.partition(" ")[0]))
        begin, end = span(root, keys, of_key=message.endswith("unknown setting")) if root.get(*keys) else (0, 0)
        where = (*line_and_column(text, begin), end - begin)
    except Unreadable as fault:
        where = (fault.line, fault.column, 1)
    except (OSError, ValueError):
        return _shown("error", None, Problem(error.message, error.hint))
    return _shown("error", file, Problem(message, error.hint, *where))


def _shown(level: str, file: str | None, problem: Problem) -> _Shown:
    """A problem, with None for what is not known of its place."""
    known = {key: value or None for key, value in problem._asdict().items() if key not in ("message", "hint", "text")}
    return {"level": level, "file": file, **known, "message": redacted(problem.message), "hint": redacted(problem.hint)}


@click.command("edit", Command)
@with_settings("policy")
def edit(settings: Settings) -> int | None:
    """Open a copy of the policy file in the editor that VISUAL or EDITOR names, check it, and save it if it is valid.

    If the text has errors, mcpguard asks whether to edit it again or to discard it. Without a terminal it discards the text. If
    there is no policy file, it first creates one with the starter rules.

    \b
    Example:
      EDITOR=nano mcpguard policy edit
    """
    path = settings.policy
    with draft_of(path) as draft:
        while True:
            _open_editor(draft.file)
            try:
                found = draft.check()
            except PolicyError as error:
                if not (draft.is_changed and can_ask()):
                    if draft.is_changed:
                        echo(f"{path}: not saved, because the text has errors", err=True)
                    raise
                click.echo("\n".join(error_lines(error)), err=True)
                with contextlib.suppress(click.Abort):  # the end of the input, or Ctrl-C
                    if confirm("Edit again, or else discard the changes?", default=True):
                        continue
                echo(f"{path}: the changes were discarded", err=True)
                return error.exit_status
            if draft.is_changed:
                draft.save()
            unchanged = "" if draft.is_changed else " (unchanged)"
            echo(f"{path}: OK, {counted(found)}{unchanged}")
            for warning in [*warnings(found, tiers=used_tiers(settings)), *still_capped(found).warnings]:
                warn(warning)
            return None


def _open_editor(file: Path) -> None:
    try:
        click.edit(filename=str(file))
    except click.ClickException as error:
        raise McpguardError(f"the editor: {error.format_message()}", "set VISUAL or EDITOR to the editor's command") from error
    except ValueError as error:  # click splits the command into words as a shell does
        raise McpguardError(f"VISUAL or EDITOR is not a command: {error}", "close each quotation mark") from error


@click.command("init", Command)
@with_settings("policy")
def init(settings: Settings) -> None:
    """Write the starter rules to the policy file. They apply while there is no such file.

    \b
    Example:
      mcpguard policy init
    """
    path = settings.policy
    if not begin(path):
        raise McpguardError(f"{path} already exists", "change it with mcpguard policy set or mcpguard policy edit")
    echo(f"{path}: wrote {len(parse(STARTER).rules)} starter rules")


@click.command("path", Command)
@with_settings("policy")
def path(settings: Settings) -> None:
    """Print the path of the policy file, even if there is no such file.

    \b
    Example:
      cat "$(mcpguard policy path)"
    """
    click.echo(str(settings.policy))


@click.command("schema", Command)
@click.option("--config", "of_config", is_flag=True, help="Print the schema of config.toml.")
def schema(of_config: bool) -> None:
    """Print the JSON Schema of policy.toml, by which editors complete and check it.

    A policy that mcpguard makes names it in its first line, #:schema ./policy.schema.json, and mcpguard writes that file beside
    it. Even Better TOML, taplo and others read this line.

    \b
    Examples:
      mcpguard policy schema > policy.schema.json
      mcpguard policy schema --config > config.schema.json
    """
    click.echo(schema_text(config_schema() if of_config else policy_schema()), nl=False)
