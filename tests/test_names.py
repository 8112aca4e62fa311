"""A name means one thing, and each file has its place in the manual's page about the architecture."""

import ast
import re
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


def test_the_architecture_page_names_each_file_and_no_other() -> None:
    root = Path(mcpguard.__file__).parent
    files = {file.stem for pattern in ("*.py", "*.lua", "*.toml") for file in root.rglob(pattern)} - {"__init__", "__main__"}
    rows = re.findall(r"^\| (`.*?) \|", (root.parent / "docs/architecture.md").read_text("utf-8"), re.MULTILINE)
    named = {Path(one).stem for row in rows for one in re.findall(r"`([^`]+)`", row)}
    of_commands = {file.stem for file in (root / "cli").rglob("*.py")}
    assert files - named - of_commands == set()
    assert named - files == set()
