"""Shows a change of a client's file: the lines that change, with the values of variables and with secrets masked."""

import os
import re
from collections.abc import Iterator
from difflib import SequenceMatcher
from typing import Final

from mcpguard.clients.entries import ENV
from mcpguard.clients.plan import Change
from mcpguard.documents.document import Dialect, Splice, is_blank, quoted, read, spliced
from mcpguard.documents.model import Array, Node, Object, Opaque, Scalar, plain
from mcpguard.text.redaction import MASK, masked_output, masked_words

_LONG: Final = 200
"""Of a longer line only the parts that change are shown: some clients write a file in one line."""

_BESIDE: Final = 60
"""How many characters are shown beside the part of a long line that changes."""

_SHOWN: Final = ("args", "bash", "cmd", "command", "cwd", "matcher", "name", "powershell", "type")
"""The members whose texts are shown. Any other text may be a secret."""


def diff(change: Change) -> Iterator[str]:
    """A unified diff without context: the lines that change, as they are in the file. Parts of long lines have `…` around them.

    The time is proportional to the size of the file.
    """
    old, new = (_lines(data, change.dialect) for data in (change.old, change.new))
    before, after = (str(change.file) if data is not None else "/dev/null" for data in (change.old, change.new))
    yield f"--- {before}"
    yield f"+++ {after}"
    for kind, *hunk in SequenceMatcher(None, old, new).get_opcodes():
        if kind == "equal":
            continue
        gone = [masked_output(line, ()) for line in old[hunk[0] : hunk[1]]]
        come = [masked_output(line, ()) for line in new[hunk[2] : hunk[3]]]
        yield f"@@ -{_range(*hunk[:2])} +{_range(*hunk[2:])} @@"
        if any(len(line) > _LONG for line in (*gone, *come)):
            gone, come = _excerpts("\n".join(gone), "\n".join(come))
        yield from (f"-{line}" for line in gone)
        yield from (f"+{line}" for line in come)


def _lines(data: bytes | None, dialect: Dialect) -> list[str]:
    """The lines of a file, masked."""
    if data is None or is_blank(data):
        return []
    document = read(data, dialect)
    splices: list[Splice] = []
    for splice in sorted(set(_masks(document.text, document.root))):
        if not splices or splice.start >= splices[-1].end:  # an alias of YAML has the place of what it stands for
            splices.append(splice)
    text = spliced(document.text, splices).replace("\r\n", "\n")
    return text.removesuffix("\n").split("\n")


def _masks(text: str, node: Node, key: str = "", *, is_env: bool = False) -> Iterator[Splice]:
    """Replace the texts of a document that may be secret.

    Args:
        text: The document.
        node: A node of it.
        key: The name of the member that the node is the value of, or a part of the value.
        is_env: Whether the node is a variable, or a part of a table of variables.
    """
    if isinstance(node, Object):
        for child in node.children:
            yield from _masks(text, child.node, child.key, is_env=is_env or child.key in ENV)
    elif isinstance(node, Array) and (is_env or key not in _SHOWN):
        for child in node.children:
            yield from _masks(text, child.node, key, is_env=is_env)
    elif is_env or key not in _SHOWN or isinstance(node, Opaque):
        value = text if isinstance(node, Opaque) else plain(node)
        if value not in ("", None) and (is_env or isinstance(value, str)):
            yield Splice(node.start, node.end, re.sub(r"[^\r\n]+", f'"{MASK}"', text[node.start : node.end]))
    else:
        items = [child.node for child in node.children] if isinstance(node, Array) else [node]
        words = [str(item.value) if type(item) is Scalar else "" for item in items]
        for item, word, shown in zip(items, words, masked_words(words), strict=True):
            if type(item) is not Scalar:
                yield from _masks(text, item)
            elif shown != word:
                yield Splice(item.start, item.end, quoted(shown))


def _range(start: int, end: int) -> str:
    """Lines in the form of a unified diff."""
    return f"{start + 1 if start < end else start},{end - start}"


def _excerpts(*texts: str) -> list[list[str]]:
    """The lines of the part in which two texts differ."""
    start = max(0, len(os.path.commonprefix(texts)) - _BESIDE)  # noqa: RUF071 - of texts, not of paths
    backwards = [text[start:][::-1] for text in texts]
    alike = len(os.path.commonprefix(backwards))  # noqa: RUF071 - of texts, not of paths
    shown = []
    for text in texts:
        end = min(len(text), len(text) - alike + _BESIDE)
        part = f"{'…' if start else ''}{text[start:end]}{'…' if end < len(text) else ''}"
        shown.append(part.split("\n") if text else [])
    return shown
