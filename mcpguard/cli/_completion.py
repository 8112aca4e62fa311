"""Completion for shells: the scripts that they load, and the values that they show.

click finds what can be completed. Its scripts are replaced where they damage names with colons and spaces: bash breaks words at
colons, and inserts a value without quoting it; click's script for zsh drops the words' quotation marks. The scripts start the
mcpguard on the PATH, whatever path the line begins with: `./mcpguard` may be anybody's, and a tab must not start it.
"""

import os
from typing import Any, Final

import click
from click.shell_completion import CompletionItem, FishComplete, PowerShellComplete, ShellComplete, ZshComplete

from mcpguard.cli import _typed

PROGRAM: Final = "mcpguard"
VARIABLE: Final = "_MCPGUARD_COMPLETE"
"""The variable by which a script asks for values. click has the same for every program."""

_BASH: Final = """\
%(complete_func)s() {
    local line
    COMPREPLY=()
    while IFS= read -r line; do
        if [[ $line == file,* ]]; then
            compopt -o default 2>/dev/null
        else
            COMPREPLY+=("${line#*,}")
        fi
    done < <(
        %(complete_var)s=bash_complete _MCPGUARD_LINE="${COMP_LINE:0:COMP_POINT}" _MCPGUARD_BREAKS="$COMP_WORDBREAKS" \\
            %(prog_name)s 2>/dev/null
    )
}
complete -o nosort -F %(complete_func)s %(prog_name)s
"""

_ZSH: Final = """\
#compdef %(prog_name)s

%(complete_func)s() {
    local -a values shown
    local type value help wants_files
    for type value help in ${(f)"$(
        %(complete_var)s=zsh_complete _MCPGUARD_WORDS="${(pj:\\n:)${(@Q)words[2,CURRENT-1]}}" _MCPGUARD_WORD="${(Q)PREFIX}" \\
            %(prog_name)s 2>/dev/null
    )"}; do
        if [[ $type == file ]]; then
            wants_files=1
        else
            values+=("$value")
            [[ $help == _ ]] && shown+=("$value") || shown+=("$value  -- $help")
        fi
    done
    [[ $PREFIX == --*=* ]] && compset -P 1 '*='
    [[ -n $wants_files ]] && _files
    if (( $#values )); then
        if [[ "$values" == "$shown" ]]; then
            compadd -V seen -a values
        else
            compadd -V seen -l -d shown -a values
        fi
    fi
}

if [[ $zsh_eval_context[-1] == loadautofunc ]]; then
    %(complete_func)s "$@"
else
    compdef %(complete_func)s %(prog_name)s
fi
"""

_FISH: Final = """\
function %(complete_func)s
    set -lx %(complete_var)s fish_complete
    set -l words (commandline -xpc 2>/dev/null; or commandline -opc)
    set -lx _MCPGUARD_WORDS (string join \\n -- $words[2..] | string collect)
    set -lx _MCPGUARD_WORD (commandline -ct | string collect)
    for line in (%(prog_name)s 2>/dev/null)
        if string match -q 'file,*' -- $line
            __fish_complete_path (commandline -ct)
        else
            string replace -r '^[a-z]+,' '' -- $line
        end
    end
end

complete --command %(prog_name)s --no-files --keep-order --arguments '(%(complete_func)s)'
"""


class _Shell(ShellComplete):
    """A shell. A failure gives no values, because a message would destroy the line that the user types."""

    def completed(self, args: list[str], word: str) -> list[CompletionItem[str]]:
        """The values for a word, each as the whole word: with `--option=` before it, if that is typed."""
        try:
            items = self.get_completions(list(args), word)
        except Exception:
            return []
        option, equals, _ = word.partition("=")
        before = option + equals if equals and word.startswith("--") and "--" not in args else ""
        return [
            CompletionItem(before + one.value if one.type == "plain" else one.value, one.type, one.help)
            for one in items
            if one.value.isprintable()
        ]


class _Bash(_Shell):
    name = "bash"
    source_template = _BASH

    def complete(self) -> str:
        """See `ShellComplete`."""
        typed = _typed.read(os.environ["_MCPGUARD_LINE"], os.environ["_MCPGUARD_BREAKS"])
        items = self.completed(_arguments(typed.words), typed.word)
        lines = [
            f"plain,{typed.rest_of(one.value)}" if one.type == "plain" else "file,"
            for one in items
            if one.type != "plain" or one.value.startswith(typed.word)
        ]
        return "\n".join(lines)


def _arguments(words: list[str]) -> list[str]:
    """The words after the program, which variables may precede: `A=1 mcpguard run`."""
    at = next((at for at, word in enumerate(words) if "=" not in word.partition("/")[0]), 0)
    return words[at + 1 :]


class _Zsh(_Shell, ZshComplete):
    source_template = _ZSH

    def complete(self) -> str:
        """See `ShellComplete`. The script has removed `--option=` from the word, so it is not a part of a value."""
        word = os.environ["_MCPGUARD_WORD"]
        before = word.index("=") + 1 if word.startswith("--") and "=" in word else 0
        lines = [
            line
            for one in self.completed(_lines("_MCPGUARD_WORDS"), word)
            for line in (one.type, one.value[before:] if one.type == "plain" else "_", _help(one))
        ]
        return "\n".join(lines)


class _Fish(_Shell, FishComplete):
    source_template = _FISH

    def complete(self) -> str:
        """See `ShellComplete`."""
        word = _typed.read(os.environ["_MCPGUARD_WORD"]).word
        items = self.completed(_lines("_MCPGUARD_WORDS"), word)
        return "\n".join(f"{one.type},{one.value}" + (f"\t{_help(one)}" if one.help else "") for one in items)


class _PowerShell(_Shell, PowerShellComplete):
    def complete(self) -> str:
        """See `ShellComplete`. click's script expects three lines for each value."""
        args, word = self.get_completion_args()
        return "\n".join(f"{one.type}\n{_powershell(one)}\n{_help(one)}" for one in self.completed(args, word))


def _powershell(item: CompletionItem[str]) -> str:
    if item.type != "plain" or item.value.replace("-", "").isalnum():
        return item.value
    return "'" + item.value.replace("'", "''") + "'"


def _lines(variable: str) -> list[str]:
    text = os.environ[variable]
    return text.split("\n") if text else []


def _help(item: CompletionItem[str]) -> str:
    return " ".join((item.help or "_").split())


_SHELLS: Final[dict[str, type[_Shell]]] = {"bash": _Bash, "zsh": _Zsh, "fish": _Fish, "powershell": _PowerShell}
SHELLS: Final = tuple(_SHELLS)
"""The shells for which there is a script."""


def script(cli: click.Command, shell: str) -> str:
    """The script that a shell loads.

    Args:
        cli: The whole program.
        shell: One of `SHELLS`.
    """
    return _SHELLS[shell](cli, {}, PROGRAM, VARIABLE).source()


def answer(cli: click.Command, instruction: str) -> str:
    """The values for the line that the script has put into the environment; empty if there are none.

    Args:
        cli: The whole program.
        instruction: The value of `VARIABLE`, such as `bash_complete`.
    """
    kind: Any = _SHELLS.get(instruction.removesuffix("_complete"))
    return "" if kind is None else str(kind(cli, {}, PROGRAM, VARIABLE).complete())
