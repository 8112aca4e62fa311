"""Completion for shells: the scripts that they load, and the values that they show.

click finds what can be completed. Its scripts are replaced where they damage names with colons and spaces: bash breaks words at
colons, and inserts a value without quoting it; click's script for zsh drops the words' quotation marks. The scripts start the
mcpguard on the PATH, whatever path the line begins with: `./mcpguard` may be anybody's, and a tab must not start it.
"""

import contextlib
import os
import re
import shlex
from collections.abc import Callable

import click
from click.shell_completion import PowerShellComplete, ShellComplete

from mcpguard.cli.commands import Command
from mcpguard.light_typing import Final, NamedTuple

PROGRAM: Final = "mcpguard"
VARIABLE: Final = "_MCPGUARD_COMPLETE"
"""The variable by which a script asks for values. click has the same for every program."""

_BASH: Final = """\
%(complete_func)s() {
    local type value help
    COMPREPLY=()
    while IFS= read -r type && IFS= read -r value && IFS= read -r help; do
        if [[ $type == file ]]; then
            compopt -o default 2>/dev/null
        else
            COMPREPLY+=("$value")
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
        %(complete_var)s=zsh_complete _MCPGUARD_WORDS="${(pj:\\n:)${(@Q)words[2,CURRENT-1]}}" \\
            _MCPGUARD_WORD="${(qq)${(Q)PREFIX}}" %(prog_name)s 2>/dev/null
    )"}; do
        [[ $PREFIX == --*=* ]] && value="${value#*=}"
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
    (( $+functions[compdef] )) || { autoload -Uz compinit && compinit -i }
    compdef %(complete_func)s %(prog_name)s
fi
"""

_FISH: Final = """\
function %(complete_func)s
    set -lx %(complete_var)s fish_complete
    set -l words (commandline -xpc 2>/dev/null; or commandline -opc)
    set -lx _MCPGUARD_WORDS (string join \\n -- $words[2..] | string collect)
    set -lx _MCPGUARD_WORD (commandline -ct | string collect)
    %(prog_name)s 2>/dev/null | while read -l type; and read -l value; and read -l help
        if test $type = file
            __fish_complete_path (commandline -ct)
        else
            printf '%%s\\t%%s\\n' $value (string replace -r '^_$' '' -- $help)
        end
    end
end

complete --command %(prog_name)s --no-files --keep-order --arguments '(%(complete_func)s)'
"""


_SPECIAL: Final = re.compile(r"[^\w./:@%+,=-]")
"""Characters that a shell may not take as they are."""


class Typed(NamedTuple):
    """An unfinished command line.

    Attributes:
        words: The words before the last one, without quotation marks.
        word: The last word, without quotation marks; empty after a space.
        quote: The quotation mark that is open at the end; empty if none is.
        start: Where in `word` the text begins that the shell replaces.
    """

    words: list[str]
    word: str
    quote: str = ""
    start: int = 0

    def rest_of(self, value: str) -> str:
        """What the shell puts in place of the text from `start` on, so that the last word becomes `value`.

        >>> read('run --agent "Claude Code::', ":").rest_of("Claude Code::api::x y"), read("a::", ":").rest_of("a::b c")
        ('Claude Code::api::x y', 'b\\\\ c')
        """
        text = value[self.start :]
        if self.quote == "'":
            return text.replace("'", "'\\''")
        return re.sub(r'["\\$`]', r"\\\g<0>", text) if self.quote else _SPECIAL.sub(r"\\\g<0>", text)


def read(line: str, breaks: str = "") -> Typed:
    """Split a line into words.

    Args:
        line: The line up to the cursor.
        breaks: Characters at which the shell begins to replace a word anew (`COMP_WORDBREAKS`).
    """
    line = re.sub(r"(?<!\\)((?:\\\\)*)\\$", r"\1", line)  # half of an escape
    words: list[str] = []
    for quote in ("", "'", '"'):
        with contextlib.suppress(ValueError):  # another quotation mark is open
            words = shlex.split(line + quote)
            break
    if quote:
        tail = line[line.rindex(quote) + 1 :]
        replaced = re.sub(r'\\(["\\])', r"\1", tail) if quote == '"' else tail
    else:  # readline replaces the text after the last break; of these, only @ and $ belong to it
        found = re.search(rf"[@$]?(?:\\.|[^\\\s'\"{re.escape(breaks)}])*$", line)
        replaced = re.sub(r"\\(.)", r"\1", found[0]) if found else ""
        if not replaced and line[-1:] in {"", " ", "\t", "\n"}:
            words.append("")
    word = words.pop() if words else ""
    return Typed(words, word, quote, max(0, len(word) - len(replaced)))


_Asked = tuple[list[str], str, Callable[[str], str]]
"""What a shell asks for: the arguments before the word, the word, and the form in which it takes a value."""


def _bash() -> _Asked:
    typed = read(os.environ["_MCPGUARD_LINE"], os.environ["_MCPGUARD_BREAKS"])
    # Variables may precede the program: `A=1 mcpguard run`
    program = next((at for at, word in enumerate(typed.words) if "=" not in word.partition("/")[0]), 0)
    return typed.words[program + 1 :], typed.word, typed.rest_of


def _zsh_or_fish() -> _Asked:
    words = os.environ["_MCPGUARD_WORDS"]
    return words.split("\n") if words else [], read(os.environ["_MCPGUARD_WORD"]).word, str


def _powershell() -> _Asked:
    def quoted(value: str) -> str:
        return value if value.replace("-", "").isalnum() else "'" + value.replace("'", "''") + "'"

    args, word = PowerShellComplete(click.Command(PROGRAM), {}, PROGRAM, VARIABLE).get_completion_args()
    return args, word, quoted


_SHELLS: Final[dict[str, tuple[str, Callable[[], _Asked]]]] = {
    "bash": (_BASH, _bash),
    "zsh": (_ZSH, _zsh_or_fish),
    "fish": (_FISH, _zsh_or_fish),
    "powershell": (PowerShellComplete.source_template, _powershell),
}


def answer(cli: click.Command, instruction: str) -> str:
    """The values for the line that the script has put into the environment; empty if there are none.

    Each has three lines: its type, which is `plain`, or `file` if the shell completes the name of a file; the whole word, with
    `--option=` before it if that is typed; and its help. In place of what there is not, a line has `_`.

    Args:
        cli: The whole program.
        instruction: The value of `VARIABLE`, such as `bash_complete`.
    """
    shell = instruction.removesuffix("_complete")
    if shell not in _SHELLS:
        return ""
    args, word, form = _SHELLS[shell][1]()
    try:
        items = ShellComplete(cli, {}, PROGRAM, VARIABLE).get_completions(list(args), word)
    except Exception:  # a message would destroy the line that the user types
        return ""
    option, equals, _ = word.partition("=")
    before = option + equals if equals and word.startswith("--") and "--" not in args else ""
    lines = []
    for one in items:
        if one.type != "plain":
            lines += [one.type, "_", "_"]
        elif one.value.isprintable():
            lines += ["plain", form(before + one.value), " ".join((one.help or "_").split())]
    return "\n".join(lines)


@click.command("completion", Command)
@click.argument("shell", type=click.Choice(tuple(_SHELLS)), metavar="bash|zsh|fish|powershell")
def completion(shell: str) -> None:
    """Print the script by which your shell completes commands, options, and the users, agents, tools and servers seen.

    Let the shell load it at its start:

    \b
      echo 'eval "$(mcpguard completion bash)"' >> ~/.bashrc
      echo 'eval "$(mcpguard completion zsh)"' >> ~/.zshrc
      mcpguard completion fish > ~/.config/fish/completions/mcpguard.fish
      mcpguard completion powershell >> $PROFILE

    Needs bash 4.4 or later. If .zshrc runs compinit, put the line after it. Names come from the policy and from the newest
    rows of the audit log. They are read for a second at most, and nothing is changed.
    """
    template = {"complete_func": "_mcpguard_completion", "complete_var": VARIABLE, "prog_name": PROGRAM}
    click.echo(_SHELLS[shell][0] % template, nl=False)
