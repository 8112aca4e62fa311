"""A hint is an imperative sentence, such as `check the path`, or the question `did you mean …?`."""

import ast
from collections.abc import Iterator
from pathlib import Path

from mcpguard import errors

ROOT = Path(__file__).parents[1]
ERRORS = {name for name, one in vars(errors).items() if isinstance(one, type) and issubclass(one, errors.McpguardError)}
NO_VERBS = set(
    "a all an another any are can clients does for how is it its known no only other servers the these to what who your".split()
)
"""Words with which no imperative sentence begins."""


def texts(node: ast.expr) -> Iterator[str]:
    """The beginnings of the texts that an expression can be; none if that depends on other code."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.JoinedStr):
        yield from texts(node.values[0]) if isinstance(node.values[0], ast.Constant) else ["{…}"]
    elif isinstance(node, ast.BinOp):
        yield from texts(node.left)
    elif isinstance(node, ast.IfExp):
        yield from (*texts(node.body), *texts(node.orelse))


def hints(tree: ast.Module) -> Iterator[str]:
    """The hints of errors and faults, and texts with the name `hint`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = getattr(node.func, "id", "")
            if name in ERRORS | {"Fault", "failed", "advice", "_wrong"} and len(node.args) > 1:
                yield from texts(node.args[1] if name in ERRORS | {"_wrong"} else node.args[2 if len(node.args) > 2 else 1])
        elif isinstance(node, ast.Assign) and any(getattr(target, "id", "") == "hint" for target in node.targets):
            yield from texts(node.value)


def test_each_hint_says_what_to_do_or_what_was_probably_meant() -> None:
    found = {hint for file in (ROOT / "mcpguard").rglob("*.py") for hint in hints(ast.parse(file.read_text("utf-8"))) if hint}
    assert len(found) > 150
    wrong = {hint for hint in found if hint.split()[0].lower() in NO_VERBS or hint.endswith((".", "?"))}
    assert {hint for hint in wrong if not hint.startswith("did you mean ")} == set()
