"""What commands print: paragraphs of at most 80 columns, tables for a terminal, JSON; and what happens if nobody reads it."""

import json
import os
import select
import shutil
import sys
import textwrap
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final
from unicodedata import east_asian_width

import click

from mcpguard.text.printing import printable

Columns = Sequence[tuple[str, int]]
"""The columns of a table: their headings and sizes. A negative size aligns a column to the right."""

WIDTH: Final = 80
"""The width of plain text in columns."""

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
        from mcpguard.cli.windows import is_unread

        time.sleep(within_s)
        return is_unread(sys.stdout.fileno())
    poll = select.poll()
    poll.register(sys.stdout.fileno(), select.POLLHUP)  # `poll` reports it always, but macOS nothing if asked for nothing
    return bool(poll.poll(within_s * 1000))


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
        from mcpguard.cli.windows import is_console

        return is_console(sys.stdin.fileno())
    return True


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
