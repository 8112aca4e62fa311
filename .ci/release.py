#!/usr/bin/env python3
"""The steps of a release. `.github/workflows/release.yml` runs them one by one, and `dry-run` runs all of them.

python .ci/release.py check TAG    fails if the sources are not ready to be published as this tag
python .ci/release.py build        builds the sdist, and the wheel from it, into dist/, and checks both
python .ci/release.py try WHEEL    installs the wheel into an empty environment, and uses it
python .ci/release.py sbom         writes what the wheel depends on, from uv.lock, into sbom/, as CycloneDX
python .ci/release.py notes        prints this version's part of the changelog
python .ci/release.py dry-run      all of them on a copy of the sources; says what keeps these from being published

`try` needs Python alone. The other steps need the extra `release`.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import venv
from email import message_from_bytes
from pathlib import Path
from typing import Any
from zipfile import ZipFile

ROOT = Path(__file__).resolve().parents[1]
DIST = "mcpguard_cli"
EXTRAS = ("redis", "yaml", "report", "otel")
"""The extras that users install."""

PLACEHOLDER = "https://example.com/acme/mcpguard"
"""The address in a dry run as long as there is none."""


class Unready(Exception):
    """Something must be changed before the release. The text says what."""


def run(*words: str | Path, **options: object) -> None:
    """Run a program, and fail if it does."""
    print("$", *words, flush=True)
    subprocess.run(words, check=True, **options)  # type: ignore[call-overload]


def version_in(root: Path) -> str:
    """The version, which stands in one place only."""
    found = re.search(r'^__version__ = "(.+)"$', (root / "mcpguard/__init__.py").read_text("utf-8"), re.MULTILINE)
    assert found
    return found[1]


def repository_in(root: Path) -> str:
    """The repository's address, which stands in one place only."""
    project = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))
    address = project["tool"]["hatch"]["metadata"]["hooks"]["custom"]["repository"]
    assert isinstance(address, str)
    return address


def section(root: Path) -> tuple[str, str]:
    """What stands after this version in its heading of the changelog, and the text below the heading."""
    log = (root / "CHANGELOG.md").read_text("utf-8")
    found = re.search(rf"^## {re.escape(version_in(root))}(?:, (.*))?\n+((?:(?!## ).*\n)*)", log, re.MULTILINE)
    return (found[1] or "", found[2].strip()) if found else ("", "")


def blockers(root: Path, tag: str) -> list[str]:
    """What keeps these sources from being published as a tag."""
    version = version_in(root)
    date, notes = section(root)
    pages = [root / "README.md", *sorted((root / "docs").glob("*.md"))]
    unpublished = [page.relative_to(root).as_posix() for page in pages if "not published yet" in page.read_text("utf-8")]
    checks = {
        f"the tag is {tag}, but __version__ in mcpguard/__init__.py is {version}: tag v{version}": tag == f"v{version}",
        'repository in pyproject.toml is "": write the address of the repository': bool(repository_in(root)),
        f"CHANGELOG.md has nothing about {version}": bool(notes),
        f"CHANGELOG.md says {version}, {date or 'undated'}: write the date, such as 2026-12-31": bool(
            re.fullmatch(r"\d{4}-\d\d-\d\d", date)
        ),
        f"{', '.join(unpublished)}: take out the sentence that the package is not published yet": not unpublished,
    }
    return [problem for problem, is_good in checks.items() if not is_good]


def check(root: Path, tag: str) -> None:
    """Refuse to publish what is not ready."""
    if found := blockers(root, tag):
        raise Unready("\n".join(found))
    print(f"{tag} is ready")


def built(root: Path, suffix: str) -> Path:
    """The one file in dist/ with a suffix."""
    (found,) = (root / "dist").glob(f"{DIST}-{version_in(root)}*{suffix}")
    return found


def build(root: Path) -> None:
    """Build, and check the metadata, the page and the list of files."""
    shutil.rmtree(root / "dist", ignore_errors=True)
    run(sys.executable, "-m", "build", "--outdir", root / "dist", root)
    run(sys.executable, "-m", "twine", "check", "--strict", *sorted((root / "dist").iterdir()))
    with ZipFile(built(root, ".whl")) as wheel:
        outside = sorted({name.split("/")[0] for name in wheel.namelist()} - {"mcpguard"})
        metadata = message_from_bytes(wheel.read(f"{outside[0]}/METADATA"))
    with tarfile.open(built(root, ".tar.gz")) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    page = str(metadata.get_payload())
    relative = re.findall(r"\]\((?!https?://)[^)]*\)", page)
    address = repository_in(root)
    problems = [
        *(["the wheel holds more than the package: " + ", ".join(outside)] if len(outside) != 1 else []),
        *([f"the page's links are relative: {', '.join(relative[:3])} …"] if address and relative else []),
        *(["the metadata has no project URLs"] if address and not metadata.get_all("Project-URL") else []),
        *(
            f"the sdist lacks {name}"
            for name in ("LICENSE", "CHANGELOG.md", "tests/conftest.py", ".ci/run")
            if name not in names
        ),
    ]
    if problems:
        raise Unready("\n".join(problems))
    for file in sorted((root / "dist").iterdir()):
        print(f"{file.name}: {file.stat().st_size / 1024:.0f} KiB")


def use(wheel: Path) -> None:
    """Install a wheel alone into an empty environment, and use it there, away from the sources."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        place = Path(folder)
        venv.create(place / "empty", with_pip=True)
        programs = place / "empty" / ("Scripts" if os.name == "nt" else "bin")
        python = programs / ("python.exe" if os.name == "nt" else "python")
        env = {name: value for name, value in os.environ.items() if not name.startswith(("MCPGUARD_", "PYTHON"))}
        env |= {"MCPGUARD_HOME": str(place / "home"), "PYTHONUTF8": "1", "NO_COLOR": "1"}
        run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", wheel.resolve(), cwd=place, env=env)
        run(python, "-m", "pip", "check", cwd=place, env=env)
        mcpguard = programs / ("mcpguard.exe" if os.name == "nt" else "mcpguard")
        run(mcpguard, "--version", cwd=place, env=env)
        run(mcpguard, "demo", cwd=place, env=env)
        run(mcpguard, "policy", "set", "--tool", "search_customers", "1/1h", cwd=place, env=env)
        first, second = talk(
            [mcpguard, "run", "--server", "crm", "--denials", "error", "--", python, "-m", "mcpguard.demo.crm"], env
        )
        if "result" not in first or second.get("error", {}).get("code") != 429:
            raise Unready(f"{wheel.name}: the first call must pass and the second be denied, but: {first}, {second}")
        print(second["error"]["message"])


def talk(server: list[str | Path], env: dict[str, str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The answers to two calls of one tool."""
    print("$", *server, flush=True)
    client = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "release", "version": "1"}}
    call = {"name": "search_customers", "arguments": {"query": "berlin"}}
    with subprocess.Popen(server, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env) as process:
        to_server, from_server = process.stdin, process.stdout
        assert to_server
        assert from_server

        def send(**message: object) -> None:
            to_server.write(json.dumps({"jsonrpc": "2.0", **message}).encode() + b"\n")
            to_server.flush()

        def ask(number: int, method: str, params: dict[str, Any]) -> dict[str, Any]:
            send(id=number, method=method, params=params)
            answer: dict[str, Any] = json.loads(from_server.readline())
            return answer

        ask(1, "initialize", client)
        send(method="notifications/initialized")
        answers = ask(2, "tools/call", call), ask(3, "tools/call", call)
        to_server.close()
    if process.returncode:
        raise Unready(f"mcpguard run exited with status {process.returncode}")
    return answers


def write_sbom(root: Path) -> None:
    """Write the bill of materials: the package, and each dependency with its hashes."""
    extras = [word for extra in EXTRAS for word in ("--extra", extra)]
    command = ["uv", "export", "--quiet", "--frozen", "--no-dev", *extras, "--format", "cyclonedx1.5"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, encoding="utf-8", check=True)
    found = json.loads(done.stdout)
    version = version_in(root)
    # uv does not know the version, since it is not in pyproject.toml
    found["metadata"]["component"] |= {"version": version, "purl": f"pkg:pypi/mcpguard-cli@{version}"}
    file = root / "sbom" / f"mcpguard-cli-{version}.cdx.json"
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(found, indent=2) + "\n", "utf-8")
    print(f"{file.relative_to(root)}: {len(found['components'])} packages")


def dry_run(root: Path) -> None:
    """Run all steps on a copy of the sources, in which the address is filled in."""
    done = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=root, capture_output=True, check=True
    )
    left = blockers(root, f"v{version_in(root)}")
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "mcpguard"
        for name in done.stdout.decode("utf-8").split("\0")[:-1]:
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, copy / name)
        project = copy / "pyproject.toml"
        project.write_text(project.read_text("utf-8").replace('repository = ""', f'repository = "{PLACEHOLDER}"'), "utf-8")
        build(copy)
        use(built(copy, ".whl"))
        write_sbom(copy)
        print(section(copy)[1].splitlines()[0])
    print("\nAll steps have passed." + "".join(f"\nBefore the release: {one}" for one in left))


def main(words: list[str]) -> None:
    """Carry out one step."""
    match words:
        case ["check", tag]:
            check(ROOT, tag)
        case ["build"]:
            build(ROOT)
        case ["try", wheel]:
            use(Path(wheel))
        case ["sbom"]:
            write_sbom(ROOT)
        case ["notes"]:
            print(section(ROOT)[1])
        case ["dry-run"]:
            dry_run(ROOT)
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except Unready as problem:
        sys.exit("".join(f".ci/release.py: {line}\n" for line in str(problem).splitlines()).rstrip())
