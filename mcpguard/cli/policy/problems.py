"""The problems of a policy and of `config.toml`, as `policy check --json` prints them: each with its place."""

import re
from typing import Any

from mcpguard.documents.model import Unreadable, line_and_column, span
from mcpguard.documents.toml import parse
from mcpguard.errors import ConfigError, PolicyError, Problem
from mcpguard.files import read_at_once
from mcpguard.policy.lint import place
from mcpguard.text.redaction import redacted

_Shown = dict[str, Any]


def result(file: str | None, problems: list[_Shown], **valid: Any) -> _Shown:
    """The result of a check: of a valid policy its `rules`, `warnings` and `notes`."""
    usual = {"file": file, "starter": bool(valid) and file is None, "rules": None, "problems": problems}
    return usual | {"errors": [] if valid else problems, "warnings": [], "notes": []} | valid


def wrong(error: ConfigError | PolicyError, policy: str | None) -> list[_Shown]:
    """What is wrong with the policy or with the settings. An error of a file as a whole has no line."""
    if isinstance(error, ConfigError):
        return [_setting(error)]
    return [_shown("error", policy, one) for one in error.problems or [Problem(error.message, error.hint)]]


def about(level: str, words: str, policy: str | None, text: str) -> _Shown:
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
        root, keys = parse(text), tuple(re.findall(r"[^'.: ]+", message.partition(" ")[0]))
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
