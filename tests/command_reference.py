"""Writes `docs/commands.md` from the help of the commands: `python -m tests.command_reference`."""

from collections.abc import Iterator
from pathlib import Path

import click

from mcpguard.cli import commands

PAGE = Path(__file__).parents[1] / "docs" / "commands.md"
WIDTH = 80

HEAD = """# Commands

This page is generated from the commands' `--help`. Results go to stdout, everything else to stderr. On a terminal lists are
tables; in a pipe they are plain text. Colours appear only on a terminal, and never if `NO_COLOR` is set. The exit statuses
are in [Configuration](configuration.md#exit-statuses).
"""


def contexts(command: click.Command, name: str, parent: click.Context | None = None) -> Iterator[click.Context]:
    """A command and its subcommands, in the order of the help."""
    context = click.Context(command, info_name=name, parent=parent, terminal_width=WIDTH, max_content_width=WIDTH)
    yield context
    if isinstance(command, commands.CommandGroup):
        for child, part in command.parts.items():
            yield from contexts(part.loaded(), child, context)


def reference() -> str:
    """The text of the page."""
    sections = [HEAD]
    for context in contexts(commands.cli, "mcpguard"):
        level = 2 if context.command_path.count(" ") < 2 else 3
        sections.append(f"{'#' * level} {context.command_path}\n\n```text\n{context.command.get_help(context)}\n```\n")
    return "\n".join(sections)


if __name__ == "__main__":
    PAGE.write_text(reference())
