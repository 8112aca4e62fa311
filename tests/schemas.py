"""Writes the schemas in `docs/schema`, and those beside the policies in `examples`: `python -m tests.schemas`."""

from collections.abc import Iterator
from pathlib import Path

from mcpguard.config_schema import config_schema
from mcpguard.policy.parse import SCHEMA_FILE
from mcpguard.policy.schema import policy_schema, schema_text

ROOT = Path(__file__).parents[1]


def schemas() -> Iterator[tuple[Path, str]]:
    """The files and their texts."""
    policy = schema_text(policy_schema())
    yield ROOT / "docs/schema/policy.json", policy
    yield ROOT / "docs/schema/config.json", schema_text(config_schema())
    for folder in sorted({file.parent for file in (ROOT / "examples").rglob("*.toml")}):
        yield folder / SCHEMA_FILE, policy


if __name__ == "__main__":
    for file, text in schemas():
        file.parent.mkdir(exist_ok=True)
        file.write_text(text, "utf-8", newline="\n")
