"""What is printed about an error: one line and a hint, and for an error in a policy the line of the file."""

import os
import re
from collections.abc import Iterator
from typing import Final

import click

from mcpguard.cli.present import WIDTH, cell_width
from mcpguard.errors import McpguardError, PolicyError, Problem, closest_word
from mcpguard.text.printing import printable
from mcpguard.text.redaction import redacted

SHOWN: Final = 20
"""How many errors of a policy are printed."""

_MARGIN: Final = 12
"""Columns beside a policy's line: for its number and two ellipses."""


def lines(error: McpguardError) -> list[str]:
    """The lines that describe an error, as they are printed."""
    if not isinstance(error, PolicyError) or not error.problems:
        return [_safe(f"mcpguard: {error.message}"), *_hint(error.hint)]
    source, problems = error.source, error.problems
    found: list[str] = []
    for problem in problems[:SHOWN]:
        found += [""] if found else []
        message = _safe(f"mcpguard: {source}: line {problem.line}: {problem.message}")
        found += [message, *_excerpt(problem), *_hint(problem.hint)]
    if len(problems) > 1:
        more = f", {len(problems) - SHOWN} of them not shown" if len(problems) > SHOWN else ""
        found += ["", _safe(f"{source}: {len(problems)} errors{more}")]
    return found


def _safe(text: str) -> str:
    """A text without control characters and tokens: a message may quote a name with line ends, or a pasted token."""
    return printable(redacted(text))


def _hint(text: str) -> list[str]:
    return [_safe(f"hint: {text}")] if text else []


def _excerpt(problem: Problem) -> Iterator[str]:
    """The line of a problem, and a line that marks the wrong part. Of a long line, only what is around that part."""
    text = problem.text
    if not text.strip() or redacted(text) != text:
        return
    cells = ["    " if char == "\t" else printable(char) for char in text]
    first, last, begin = 0, len(cells), problem.column - 1
    end = begin + problem.width
    over = sum(map(cell_width, cells)) - (_width() - _MARGIN)
    while over > 0:
        if last > end or first >= begin:
            last -= 1
            over -= cell_width(cells[last])
        else:
            over -= cell_width(cells[first])
            first += 1
    before, after = "…" if first else "", "…" if last < len(cells) else ""
    gap = " " * (len(before) + cell_width("".join(cells[first:begin])))
    mark = "^" * max(1, cell_width("".join(cells[begin : min(last, end)])))
    yield f"  {problem.line} | {before}{''.join(cells[first:last])}{after}"
    yield f"  {' ' * len(str(problem.line))} | {gap}{mark}"


def _width() -> int:
    """The width of the terminal on stderr, within bounds; `WIDTH` if there is none."""
    try:
        return max(40, min(os.get_terminal_size(2).columns, 160))
    except OSError:
        return WIDTH


def by_click(error: click.ClickException) -> tuple[str, str]:
    """The message and the hint of an error that click found, in the form of all other errors."""
    ctx: click.Context | None = getattr(error, "ctx", None)
    see = f"see {ctx.command_path if ctx else 'mcpguard'} --help"
    if isinstance(error, click.NoSuchOption):
        by_word = {name.lstrip("-"): name for name in error.possibilities or ()}
        near = closest_word(error.option_name.lstrip("-"), by_word)  # the dashes would make short names alike
        return f"no such option: {error.option_name}", f"did you mean {by_word[near]}? {see}" if near else see
    if isinstance(error, click.BadOptionUsage):
        return f"{error.option_name}: {_plain(error.message.partition(' ')[2].partition(' ')[2])}", see
    if isinstance(error, click.BadParameter) and not isinstance(error, click.MissingParameter) and error.param is not None:
        return f"{error.param.opts[-1]}: {_plain(error.message)}", see
    text = error.format_message().partition(". Choose from:\n")[0]  # the name of a missing argument lists its values already
    return _plain(text), see


def _plain(text: str) -> str:
    """A message without a capital letter at the beginning, a full stop at the end, and quotation marks around names."""
    text = re.sub(r"Got unexpected extra arguments? \((.*)\)", r"unexpected argument: \1", text)
    text = text.replace("is not a valid integer range", "is not a whole number").replace(
        "is not in the range x>=0", "is less than 0"
    )
    text = re.sub(r"'([\w.|{}-]+)'(?=,|\.?$)", r"\1", text)
    return (text[:1].lower() + text[1:]).removesuffix(".")
