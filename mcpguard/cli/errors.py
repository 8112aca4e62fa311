"""What is printed about an error: one line and a hint, and for an error in a policy the line of the file."""

import os
import re
from collections.abc import Iterator
from typing import Final
from unicodedata import east_asian_width

import click

from mcpguard.cli.present import WIDTH
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
    problems = error.problems
    found: list[str] = []
    for problem in problems[:SHOWN]:
        found += ["", *_problem_lines(problem, error.source)] if found else _problem_lines(problem, error.source)
    more = len(problems) - SHOWN
    if len(problems) > 1:
        found += ["", _safe(f"{error.source}: {len(problems)} errors{f', {more} of them not shown' if more > 0 else ''}")]
    return found


def _problem_lines(problem: Problem, source: str) -> list[str]:
    """An error in a policy: the message, the line of the file with a mark below it, and the hint."""
    message = _safe(f"mcpguard: {source}: line {problem.line}: {problem.message}")
    return [message, *_excerpt(problem), *_hint(problem.hint)]


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
    begin = problem.column - 1
    room = _width() - _MARGIN
    first, last = 0, len(cells)
    widths = [_columns([cell]) for cell in cells]
    over = sum(widths) - room
    while over > 0 and last > begin + problem.width:
        last -= 1
        over -= widths[last]
    while over > 0 and first < begin:
        over -= widths[first]
        first += 1
    while over > 0:
        last -= 1
        over -= widths[last]
    before = "…" if first else ""
    shown = f"{before}{''.join(cells[first:last])}{'…' if last < len(cells) else ''}"
    gap = " " * (len(before) + _columns(cells[first:begin]))
    mark = "^" * max(1, _columns(cells[begin : min(last, begin + problem.width)]))
    margin = " " * len(str(problem.line))
    yield f"  {problem.line} | {shown}"
    yield f"  {margin} | {gap}{mark}"


def _width() -> int:
    """The width of the terminal on stderr, within bounds; `WIDTH` if there is none."""
    try:
        return max(40, min(os.get_terminal_size(2).columns, 160))
    except OSError:
        return WIDTH


def _columns(cells: list[str]) -> int:
    """The width of a text on a terminal."""
    return sum(2 if east_asian_width(char) in "WF" else 1 for cell in cells for char in cell)


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
