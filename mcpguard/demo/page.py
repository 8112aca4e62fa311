"""Prints the demo: with colours and a progress bar on a terminal, as plain lines of at most 80 columns in a pipe."""

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

from rich.console import Console
from rich.highlighter import JSONHighlighter
from rich.progress import BarColumn, Progress, TextColumn
from rich.text import Text

WIDTH = 80
_INDENT = "  "


class ReaderGone(Exception):
    """The reader of stdout has gone away."""


class _Console(Console):
    def on_broken_pipe(self) -> NoReturn:
        # The interpreter flushes the buffer at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise ReaderGone


class Page:
    """Writes the demo to stdout.

    Every method raises `ReaderGone` if stdout is a pipe that nobody reads.
    """

    def __init__(self) -> None:
        terminal = sys.stdout.isatty()
        # In a pipe neither COLUMNS nor FORCE_COLOR changes the text
        self._console = _Console(force_terminal=None if terminal else False, highlight=False)
        self._console.width = min(self._console.width, WIDTH) if terminal else WIDTH

    @property
    def width(self) -> int:
        """The longest line, in columns."""
        return self._console.width

    def title(self, text: str) -> None:
        """Print the first line of the demo."""
        self._console.print(Text(text, style="bold"))

    def heading(self, text: str) -> None:
        """Print the first line of a section."""
        self._console.print()
        self._console.print(Text(text, style="bold cyan"))

    def say(self, text: str) -> None:
        """Print a paragraph."""
        self._console.print(Text(text))

    def verbatim(self, text: str, indent: str = _INDENT) -> None:
        """Print the content of a file or the output of a command, without wrapping lines."""
        for line in text.splitlines():
            style = "dim" if line.lstrip().startswith("#") else ""
            self._print_line(Text((indent + line).rstrip(), style=style))

    def result(self, label: str, *paragraphs: str) -> None:
        """Print what came of something: a label of at most ten characters, and paragraphs beside it."""
        for paragraph in paragraphs:
            for line in Text(paragraph).wrap(self._console, self.width - 14):
                self._print_line(Text.assemble(_INDENT, (label.ljust(12), "bold"), line.plain.rstrip()))
                label = ""

    def denial(self, code: int, message: str, data: Any) -> None:
        """Print an error that a client received."""
        self._print_line(Text.assemble(_INDENT, ("code     ", "dim"), (str(code), "bold red")))
        for number, line in enumerate(Text(message).wrap(self._console, self.width - 11)):
            label = "message  " if number == 0 else " " * 9
            self._print_line(Text.assemble(_INDENT, (label, "dim"), line.plain.rstrip()))
        self._print_line(Text(_INDENT + "data", style="dim"))
        highlighter = JSONHighlighter()
        for text in json.dumps(data, indent=2, ensure_ascii=False).splitlines():
            self._print_line(highlighter(Text(_INDENT * 2 + text)))

    def table(self, header: Sequence[str], rows: Sequence[Sequence[str]], names: int) -> None:
        """Print a table.

        Args:
            header: The names of the columns.
            rows: The cells.
            names: The number of columns on the left that hold words. The others hold numbers.
        """
        widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
        for number, row in enumerate([header, *rows]):
            cells = [
                cell.ljust(width) if column < names else cell.rjust(width)
                for column, (cell, width) in enumerate(zip(row, widths, strict=True))
            ]
            self._print_line(Text(_INDENT + "  ".join(cells).rstrip(), style="dim" if number == 0 else ""))

    @contextmanager
    def progress(self, label: str, total: int, every: int) -> Iterator[Callable[[int, str], None]]:
        """Show the progress of a long task.

        Args:
            label: The name of the task.
            total: The number of steps.
            every: In a pipe, print a line after this many steps.

        Yields:
            A function to call after each step, with the number of steps done and a note on their results.
        """
        if not self._console.is_terminal:
            yield (
                lambda done, note: (
                    self._print_line(Text(f"{_INDENT}{done:,} of {total:,}: {note}")) if done % every == 0 else None
                )
            )
            return
        columns = (
            TextColumn(_INDENT + "{task.description}"),
            BarColumn(bar_width=20),
            TextColumn("{task.completed:,.0f}/{task.total:,.0f}  {task.fields[note]}"),
        )
        with Progress(*columns, console=self._console, transient=True) as progress:
            task = progress.add_task(label, total=total, note="")
            yield lambda done, note: progress.update(task, completed=done, note=note)

    def _print_line(self, text: Text) -> None:
        self._console.print(text, soft_wrap=True)
