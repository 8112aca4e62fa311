"""What commands print: paragraphs of at most 80 columns, tables for a terminal, JSON, errors; and whether somebody reads it.

An error is one line and a hint. For an error in a policy it is also the line of the file.
"""

import json
import os
import re
import select
import shutil
import sys
import textwrap
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final
from unicodedata import east_asian_width

import click

from mcpguard.errors import McpguardError, PolicyError, Problem, closest_word
from mcpguard.text.printing import printable
from mcpguard.text.redaction import redacted

Columns = Sequence[tuple[str, int]]
"""The columns of a table: their headings and sizes. A negative size aligns a column to the right."""

WIDTH: Final = 80
"""The width of plain text in columns."""

_PIPE_LOCAL_INFORMATION: Final = 24
_CLOSING: Final = 4
"""The state of a pipe on Windows whose other end is closed."""

_FILLER: Final = "\0"
"""Put after each character that is two columns wide, so that `textwrap` counts two. Printable text never contains it."""


def paragraph(text: str, *, indent: str = "", label: str = "") -> None:
    """Print a text, control characters escaped, in lines of at most `WIDTH` columns, or the width of a narrower terminal.

    Words longer than a line stay whole.

    Args:
        text: The text.
        indent: Put before each line. If it is empty, all lines except the first are indented by four spaces.
        label: Put in place of the first line's indent. It may have colours, and has as many columns.
    """
    lines = textwrap.wrap(
        "".join(char + _FILLER if east_asian_width(char) in "WF" else char for char in printable(text)),
        min(WIDTH, width_of_terminal()) if sys.stdout.isatty() else WIDTH,
        initial_indent=indent,
        subsequent_indent=indent or "    ",
        break_long_words=False,
        break_on_hyphens=False,
        replace_whitespace=False,
    )
    shown = "\n".join(lines).replace(_FILLER, "")
    click.echo(label + shown[len(indent) :] if label else shown)


def echo(text: str, *, err: bool = False) -> None:
    """Print a text, control characters escaped."""
    click.echo(printable(text), err=err)


def echo_json(value: object, *, indent: int | None = None) -> None:
    """Print a value as JSON."""
    click.echo(json.dumps(value, indent=indent))


def say(text: str) -> None:
    """Print a message of this command on stderr, beside the rows on stdout."""
    echo(f"mcpguard: {text}", err=True)


def warn(text: str) -> None:
    """Print a warning on stderr."""
    echo(f"warning: {text}", err=True)


def reader_leaves(*, within_s: float) -> bool:
    """Wait for this long. True as soon as the reader of stdout has gone away."""
    if sys.platform == "win32":
        time.sleep(within_s)
        return is_unread(sys.stdout.fileno())
    poll = select.poll()
    poll.register(sys.stdout.fileno(), select.POLLHUP)  # `poll` reports it always, but macOS nothing if asked for nothing
    return bool(poll.poll(within_s * 1000))


def is_unread(fd: int) -> bool:
    """Whether a descriptor is a pipe whose reader has left; False where the system is not Windows."""
    if sys.platform != "win32":
        return False
    import ctypes
    import msvcrt

    found = (ctypes.c_ulong * 10)()  # FILE_PIPE_LOCAL_INFORMATION; its ninth member is NamedPipeState
    status = (ctypes.c_void_p * 2)()
    handle = ctypes.c_void_p(msvcrt.get_osfhandle(fd))
    failed = ctypes.windll.ntdll.NtQueryInformationFile(handle, status, found, ctypes.sizeof(found), _PIPE_LOCAL_INFORMATION)
    return not failed and found[8] == _CLOSING


def wait_for_reader(seconds: float) -> None:
    """Wait, but not for rows that nobody would read.

    Raises:
        BrokenPipeError: The reader of stdout has gone away.
    """
    if reader_leaves(within_s=seconds):
        raise BrokenPipeError


def can_ask() -> bool:
    """Whether somebody can answer a question on stdin. Windows' `NUL` only says that it is a terminal."""
    if not (sys.stdin and sys.stdin.isatty()):
        return False
    if sys.platform == "win32":
        import ctypes
        import msvcrt

        handle = ctypes.c_void_p(msvcrt.get_osfhandle(sys.stdin.fileno()))
        return bool(ctypes.windll.kernel32.GetConsoleMode(handle, ctypes.byref(ctypes.c_ulong())))
    return True


def confirm(question: str, *, default: bool = False) -> bool:
    """Ask for confirmation. Ctrl-C and Ctrl-D end the command, and its last line."""
    try:
        return click.confirm(question, default=default, err=True)
    except click.Abort:
        click.echo(err=True)
        raise


def coloured_diff(line: str) -> str:
    """A line of a diff, control characters escaped, in colours."""
    colour = {"+": "green", "-": "red", "@": "cyan"}.get(line[:1])
    return click.style(printable(line.expandtabs()), fg=colour, bold=line.startswith(("+++", "---")) or None)


def width_of_terminal() -> int:
    """The width of the terminal in columns; in a pipe, that in COLUMNS, or 80."""
    return shutil.get_terminal_size().columns


def fit(text: str, size: int) -> str:
    """A text, cut or padded to a number of terminal columns. A negative number aligns it to the right.

    >>> fit("search_customers", 8), fit("7", -3), fit("客户", 5)
    ('search_…', '  7', '客户 ')
    """
    from rich.cells import set_cell_size

    width = abs(size)
    if cell_width(text) > width:
        text = set_cell_size(text, width - 1) + "…"
    padding = " " * (width - cell_width(text))
    return padding + text if size < 0 else text + padding


def cell_width(text: str) -> int:
    """The number of terminal columns that a text takes."""
    from rich.cells import cell_len

    return cell_len(text)


def table_row(cells: Sequence[str | tuple[str, str]], columns: Columns) -> str:
    """A line of a table, each cell cut or padded to the size of its column.

    Args:
        cells: A text for each column, or a text and its colour.
        columns: The columns.
    """
    shown = []
    for cell, (_, size) in zip(cells, columns, strict=True):
        text, colour = (cell, "") if isinstance(cell, str) else cell
        shown.append(click.style(fit(text, size), fg=colour) if colour else fit(text, size))
    return " ".join(shown).rstrip()


def headings(columns: Columns) -> str:
    """The first line of a table."""
    return table_row([name for name, _ in columns], columns)


def room_beside(columns: Columns, width: int) -> int:
    """The room for one more column in a line that is shorter than the terminal: some wrap a line of full width."""
    return width - 1 - sum(abs(size) + 1 for _, size in columns)


def print_table(rows: Iterable[Sequence[str | tuple[str, str]]], columns: Sequence[dict[str, Any]]) -> None:
    """Print a table on the terminal. Long texts take several lines.

    Args:
        rows: The cells of each row: a text, or a text and its style.
        columns: The arguments of `rich.table.Column` for each column. Without a `header` there is no line of headings.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(color_system=None if os.environ.get("NO_COLOR") else "auto", highlight=False)
    console.width -= 1  # a line of full width would wrap on some terminals
    has_header = any("header" in column for column in columns)
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, show_header=has_header)
    for column in columns:
        table.add_column(**{"overflow": "fold", **column})
    for row in rows:
        cells = [(cell, "") if isinstance(cell, str) else cell for cell in row]
        table.add_row(*(Text("\n".join(map(printable, text.split("\n"))), style=style) for text, style in cells))
    console.print(table)


def short_limit(record: Mapping[str, object]) -> str:
    """The limit of a record that has one, short enough for a column.

    >>> short_limit({"limit": 2, "counts": "concurrent"}), short_limit({"limit": 3, "window": "1m", "counts": "errors"})
    ('2 at once', '3 err/1m')
    >>> short_limit({"limit": 100, "window": "1h", "counts": "cost"}), short_limit({"limit": 5, "window": "1m"})
    ('100 u/1h', '5/1m')
    """
    if record.get("counts") == "concurrent":
        return f"{record['limit']} at once"
    unit = {"cost": " u", "errors": " err"}.get(str(record.get("counts")), "")
    return f"{record['limit']}{unit}/{record['window']}"


SHOWN_ERRORS: Final = 20
"""How many errors of a policy are printed."""

_MARGIN: Final = 12
"""Columns beside a policy's line: for its number and two ellipses."""


def error_lines(error: McpguardError) -> list[str]:
    """The lines that describe an error, as they are printed."""
    if not isinstance(error, PolicyError) or not error.problems:
        return [_safe(f"mcpguard: {error.message}"), *_hint(error.hint)]
    source, problems = error.source, error.problems
    found: list[str] = []
    for problem in problems[:SHOWN_ERRORS]:
        found += [""] if found else []
        message = _safe(f"mcpguard: {source}: line {problem.line}: {problem.message}")
        found += [message, *_excerpt(problem), *_hint(problem.hint)]
    if len(problems) > 1:
        more = f", {len(problems) - SHOWN_ERRORS} of them not shown" if len(problems) > SHOWN_ERRORS else ""
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
    over = sum(map(cell_width, cells)) - (_width_of_stderr() - _MARGIN)
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


def _width_of_stderr() -> int:
    """The width of the terminal on stderr, within bounds; `WIDTH` if there is none."""
    try:
        return max(40, min(os.get_terminal_size(2).columns, 160))
    except OSError:
        return WIDTH


def click_error(error: click.ClickException) -> tuple[str, str]:
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
