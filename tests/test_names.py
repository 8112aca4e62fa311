"""A name means one thing."""

import ast
from collections import defaultdict
from pathlib import Path
from typing import Final

import mcpguard

TWINS: Final = {"ClientInput", "LineOutput", "ServerInput", "ServerProcess", "Wake"}
"""The same class for POSIX and for Windows."""


def test_no_two_classes_have_the_same_name() -> None:
    root = Path(mcpguard.__file__).parent
    places: defaultdict[str, list[str]] = defaultdict(list)
    for file in root.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.ClassDef) and node.name not in TWINS:
                places[node.name.lstrip("_")].append(str(file.relative_to(root)))
    assert {name: files for name, files in places.items() if len(files) > 1} == {}
