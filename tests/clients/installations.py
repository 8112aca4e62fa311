"""Installations of mcpguard that tests make, and programs that only have its name."""

from pathlib import Path

from mcpguard.clients.launcher import PROGRAM


def impostor(path: Path, touched: Path | None = None, version: str = "0.1.0") -> str:
    """Write a program that is merely called mcpguard. It says a version, and leaves a file behind if it is run."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{f'env > {touched}' if touched else ':'}\necho mcpguard {version}\n")
    path.chmod(0o755)
    return str(path)


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
