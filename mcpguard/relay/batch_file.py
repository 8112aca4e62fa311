"""The command line by which Windows runs a batch file, such as `npx.cmd`, with its arguments unchanged.

Windows has `cmd.exe` run a batch file, and `cmd.exe` acts on characters that other programs take as they are: an `&` would
begin another command. `subprocess` quotes for programs alone. So each argument is quoted for both: for `cmd.exe`, which reads
it once on this command line and once more where the batch file says `%*`, and for the program that the batch file starts.

- In quotes `cmd.exe` acts on no character but `"` and `%`.
- `"` is written as `""`: `cmd.exe` stays in quotes, and a program of Microsoft's C runtime reads one quotation mark.
- `%` is written as `%%cd:~,%`: a per cent sign, then a variable of which nothing is taken, so that no other variable begins
  there. `cmd.exe` expands variables on this line, and not again in what `%*` stands for.

Source: `make_bat_command_line` of Rust's standard library (library/std/src/sys/args/windows.rs), the answer to CVE-2024-24576.
"""

import re
from collections.abc import Sequence

from mcpguard.light_typing import Final

MAX_CHARS: Final = 8191
"""The longest command line of `cmd.exe`. It would cut a longer one."""

_PLAIN: Final = re.compile(r"[\w#$+./:@\\-]*[\w#$+./:@-]", re.ASCII)
"""Arguments without quotes: a batch file that compares `%1` with an option expects none. A backslash at the end needs them."""

_BEFORE_QUOTE: Final = re.compile(r'(\\*)("|$)')


def is_batch_file(program: str) -> bool:
    """Whether `cmd.exe` runs a program. Windows looks at the ending, and ignores dots and spaces behind it."""
    return program.rstrip(". ").lower().endswith((".bat", ".cmd"))


def command_line(program: str, arguments: Sequence[str]) -> str:
    """The command line that runs a batch file. `cmd.exe` has to be started with it as it is.

    Args:
        program: The path of the batch file.
        arguments: Its arguments.

    Raises:
        ValueError: `cmd.exe` cannot pass on an argument: it ends at a line break or a NUL, or the line is too long.
    """
    if any(char in argument for argument in (program, *arguments) for char in "\r\n\0"):
        raise ValueError("cmd.exe, which runs batch files, cannot pass on an argument with a line break")
    words = " ".join([_in_quotes(program), *map(_quoted, arguments)])
    line = f'cmd.exe /d /e:on /v:off /s /c "{words}"'
    if len(line) > MAX_CHARS:
        raise ValueError(f"cmd.exe, which runs batch files, takes {MAX_CHARS:,} characters, and the command has {len(line):,}")
    return line


def _quoted(argument: str) -> str:
    return argument if _PLAIN.fullmatch(argument) else _in_quotes(argument)


def _in_quotes(argument: str) -> str:
    # A program reads backslashes in front of a quotation mark in pairs; elsewhere they are what they are
    doubled = _BEFORE_QUOTE.sub(lambda found: found[1] * 2 + found[2] * 2, argument)
    return '"' + doubled.replace("%", "%%cd:~,%") + '"'
