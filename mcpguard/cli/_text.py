"""Text for a pipe: paragraphs of at most eighty columns, and nothing in them that steers a terminal."""

import textwrap
from typing import Final

import click

from mcpguard.core.audit import printable

WIDTH: Final = 80
"""Of plain text, in columns."""


def paragraph(text: str, *, indent: str = "") -> None:
    """Print a text on as many lines as it needs, indented from the second on. A word that is longer than a line stays whole."""
    lines = textwrap.wrap(
        printable(text),
        WIDTH,
        initial_indent=indent,
        subsequent_indent=indent or "    ",
        break_long_words=False,
        break_on_hyphens=False,
        replace_whitespace=False,
    )
    click.echo("\n".join(lines))
