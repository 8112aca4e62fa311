"""Finds the spans of values in a YAML text, with ruamel.yaml."""

import re
from typing import Any, Final

from mcpguard.documents.model import Array, Child, Node, Object, Opaque, Scalar, Unreadable, line_and_column
from mcpguard.errors import installing

_BLANK_OR_COMMENT: Final = re.compile(r"(?:[ \t\r\n]+|#[^\r\n]*)*")
_TAG: Final = "tag:yaml.org,2002:"


def parse(text: str) -> Node:
    """Parse a document. Numbers stay texts.

    Args:
        text: The document, without a byte order mark.

    Raises:
        Unreadable: The text is not YAML, has several documents, or ruamel.yaml is not installed.
    """
    try:
        from ruamel.yaml import YAML  # an extra, which only clients with YAML files need
        from ruamel.yaml.error import YAMLError
    except ImportError as error:
        raise Unreadable("YAML needs the extra mcpguard-cli[yaml], which is not installed", hint=installing("yaml")) from error
    reader = YAML(typ="safe", pure=True)
    reader.composer.warn_double_anchors = False  # YAML allows them, and the warning would show lines of the file
    try:
        root = reader.compose(text)
    except YAMLError as error:
        raise _unreadable(text, error) from error
    return Object(0, is_block=True) if root is None else _node(text, root)


def _unreadable(text: str, error: Any) -> Unreadable:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    what = getattr(error, "problem", None) or getattr(error, "reason", None) or "this is not YAML"
    if what.startswith("but "):  # the end of a sentence
        what = f"{error.context}, {what}"
    if mark is not None:
        return Unreadable(what, mark.line + 1, mark.column + 1)
    return Unreadable(what, *line_and_column(text, getattr(error, "position", None) or 0))


def _node(text: str, node: Any) -> Node:
    start, end = node.start_mark.index, node.end_mark.index
    merges = node.id == "mapping" and any(str(key.tag) == f"{_TAG}merge" for key, _ in node.value)
    if merges or text[start:end].startswith(("&", "!")):
        return Opaque(start, end, ("", text[start:end]))
    if node.id == "mapping":
        table = Object(start, end, is_block=not node.flow_style)
        for key, value in node.value:
            key_start, key_end = key.start_mark.index, key.end_mark.index
            name = key.value if key.id == "scalar" else text[key_start:key_end]
            table.add(Child(key_start, _node(text, value), name, key_start, key_end))
        return table
    if node.id == "sequence":
        return _array(text, Array(start, end, is_block=not node.flow_style), [_node(text, item) for item in node.value])
    return Scalar(start, end, _value(node))


def _array(text: str, array: Array, items: list[Node]) -> Array:
    """An array with items, which in a block begin at their dashes. Behind an alias they do not, but no such array is edited."""
    at = array.start
    for item in items:
        if not array.is_block:
            at = item.start
        elif blank := _BLANK_OR_COMMENT.match(text, at):
            at = blank.end()
        array.add(Child(at, item))
        at = item.end
    return array


def _value(node: Any) -> object:
    kind = str(node.tag).removeprefix(_TAG)
    if kind == "bool":
        return node.value.lower() == "true"
    if kind == "null":
        return None
    return node.value if kind == "str" else (kind, node.value)
