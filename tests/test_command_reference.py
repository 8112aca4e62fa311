"""`docs/commands.md` is the help of the commands."""

from mcpguard.cli import commands
from mcpguard.run_options import HOOK_CLIENTS
from tests.command_reference import PAGE, WIDTH, contexts, reference


def words(text: str) -> list[str]:
    return text.split()  # releases of click wrap lines in different places


def test_the_command_reference_is_the_help_of_every_command() -> None:
    assert words(PAGE.read_text("utf-8")) == words(reference()), "run python -m tests.command_reference"


def test_every_command_and_subcommand_has_a_section() -> None:
    paths = {context.command_path for context in contexts(commands.cli, "mcpguard")}
    assert {"mcpguard run", "mcpguard policy set", "mcpguard audit tail", "mcpguard hook claude-code"} <= paths
    headings = {line.lstrip("# ") for line in PAGE.read_text("utf-8").splitlines() if line.startswith("##")}
    assert headings == paths


def test_every_help_shows_an_example_or_what_to_write_into_a_file() -> None:
    helps = {context.command_path: context.command.get_help(context) for context in contexts(commands.cli, "mcpguard")}
    without = {path for path, text in helps.items() if "Example" not in text}
    assert without == {"mcpguard completion", *(f"mcpguard hook {client}" for client in HOOK_CLIENTS)}


def test_no_line_of_a_help_is_wider_than_a_terminal_of_80_columns() -> None:
    lines = [line for context in contexts(commands.cli, "mcpguard") for line in context.command.get_help(context).splitlines()]
    assert [line for line in lines if len(line) > WIDTH] == []
