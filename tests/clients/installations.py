"""Installations of mcpguard that tests make, programs that only have its name, and files of clients."""

import json
from pathlib import Path
from typing import Any

from mcpguard.clients.launcher import PROGRAM


def program(file: Path, text: str = "#!/bin/sh\n") -> Path:
    written(file, text).chmod(0o755)
    return file


def impostor(path: Path, touched: Path | None = None, version: str = "0.1.0") -> str:
    """Write a program that is merely called mcpguard. It says a version, and leaves a file behind if it is run."""
    return str(program(path, f"#!/bin/sh\n{f'env > {touched}' if touched else ':'}\necho mcpguard {version}\n"))


def installed(folder: Path, version: str, packages: str = "lib/python3.12/site-packages", *, listed: bool = True) -> str:
    """Write an environment with a mcpguard of a version, as pip and uv record it; return its program."""
    program = impostor(folder / "bin" / PROGRAM)
    record = folder / packages / f"mcpguard_cli-{version}.dist-info"
    record.mkdir(parents=True)
    (record / "METADATA").write_text(f"Metadata-Version: 2.4\nName: mcpguard-cli\nVersion: {version}\n\nIt said: Version: 9\n")
    up = "../" * len(Path(packages).parts)
    lines = [f"{record.name}/METADATA,,", f"{record.name}/RECORD,,", *([f"{up}bin/{PROGRAM},,"] if listed else [])]
    (record / "RECORD").write_text("\n".join(lines) + "\n")
    return program


def written(file: Path, value: Any) -> Path:
    """Write a client's file: a text, or a value as JSON."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(value if isinstance(value, str) else json.dumps(value), "utf-8")
    return file


def hooks(command: str, matcher: str = "*", event: str = "PreToolUse", **more: object) -> dict[str, Any]:
    return {"hooks": {event: [{"matcher": matcher, "hooks": [{"type": "command", "command": command} | more]}]}}
