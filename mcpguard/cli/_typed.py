"""Reads an unfinished command line as a shell does, and writes a value as the rest of a word."""

import re
from typing import Final, NamedTuple

_SPECIAL: Final = re.compile(r"[^\w./:@%+,=-]")
"""Characters that a shell may not take as they are."""

_KEPT_BY_READLINE: Final = "@$"
"""Readline breaks a word before these characters, and after all others."""


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
    words: list[str] = []
    word, quote, start, at = "", "", 0, 0
    is_begun = False
    while at < len(line):
        char, at = line[at], at + 1
        if char == quote:
            quote, start = "", len(word)
        elif char == "\\" and quote != "'" and (not quote or line[at : at + 1] in tuple('"\\$`')):
            word, at = word + line[at : at + 1], at + 1
        elif quote:
            word += char
        elif char in "'\"":
            quote, start = char, len(word)
        elif char in " \t\n":
            if is_begun:
                words.append(word)
            word, start, is_begun = "", 0, False
            continue
        else:
            word += char
            if char in breaks:
                start = len(word) - (char in _KEPT_BY_READLINE)
        is_begun = True
    return Typed(words, word, quote, start)
