"""Derives a server's name from the command that starts it, for those who give none: `install` always gives one.

The name is written to the audit log and to stderr, so a word that could be a secret is never used. A word after an option of a
launcher that is not listed here may be the option's value. Then the server is named after the launcher.
"""

import re
from collections.abc import Sequence

from mcpguard.light_typing import Final
from mcpguard.text.redaction import holds_token

_NPX: Final = "exec run dlx x -- -y --yes -q --quiet -p= --package="
_PYTHON: Final = "run tool -m -u -B -E -I -S -q --quiet -p= -W= -X= --directory= --project= --from= --with= --python="
_DOCKER: Final = """compose container exec run -i -t -it -T --interactive --tty --rm --init
    -e= --env= -v= --volume= --mount= --name= --network="""

_LAUNCHERS: Final = {
    **dict.fromkeys("npm npx pnpm yarn".split(), _NPX),
    **dict.fromkeys("bun bunx node tsx".split(), "run x --bun --no-warnings --enable-source-maps"),
    **dict.fromkeys("pipx py python uv uvx".split(), _PYTHON),
    **dict.fromkeys("docker podman".split(), _DOCKER),
    **dict.fromkeys("bash env sh zsh".split(), ""),
    "cmd": "/c /C /d /s",
    "deno": "run -A --allow-all --allow-env --allow-net --allow-read --allow-run --allow-write",
    "dotnet": "run",
    "java": "-jar",
}
"""Launchers, and the words that may stand before the program that they start. After one that ends with `=` comes its value."""

_GENERIC: Final = frozenset("__main__ app bin build cli cmd dist index lib main mcp mod out server src start".split())
_EXTENSION: Final = re.compile(r"\.(?:bat|cjs|cmd|dll|exe|git|jar|js|mjs|ps1|py|sh|ts)$", re.IGNORECASE)
_VERSION: Final = re.compile(r"(?<=.)@|[=<>~!]=|[<>\[:]|-v?[0-9]+[.][0-9]")
_NAME: Final = re.compile(r"\w[\w.+-]{0,63}")
_SECRET: Final = re.compile(r"(?=[A-Za-z_]*[0-9])[A-Za-z0-9_]{24}")
"""Not a name: so many letters and digits in a row are a key or a hash."""


def server_name(command: Sequence[str]) -> str:
    """A server's name: the first argument that is no option, after a launcher, else the program's name.

    >>> server_name(["npx", "-y", "@modelcontextprotocol/server-everything@2026.7.1", "stdio"])
    'server-everything'
    >>> server_name(["node", "/srv/crm/dist/index.js"]), server_name(["docker", "run", "-i", "--rm", "mcp/git:latest"])
    ('crm', 'git')
    >>> server_name(["npx", "--token", "5ecret", "crm"]), server_name(["bash", "-c", "crm --api-key 5ecret"])
    ('npx', 'bash')
    """
    name, words = "server", list(command)
    while words:
        launcher = re.sub(r"[0-9.]+$", "", _bare(words[0]).lower())
        if launcher not in _LAUNCHERS:
            return _bare(words[0]) or name
        name, words = launcher, _program(_LAUNCHERS[launcher].split(), words[1:])
    return name


def _program(ahead: Sequence[str], words: list[str]) -> list[str]:
    """The program that a launcher starts, and its arguments; empty if they cannot be found."""
    while words:
        word, *words = words
        option, has_value, _ = word.partition("=")
        if f"{option}=" in ahead:
            words = words if has_value else words[1:]
        elif option not in ahead and not re.match(r"\w+=(?!=)", word):  # a variable for the program
            return [] if word.startswith("-") or re.search(r"\s", word) else [word, *words]
    return []


def _bare(word: str) -> str:
    """The name in a path, package, image or URL; empty if it does not have the form of a name."""
    path = re.split(r"[#?]", re.sub(r"^(?:npm:|jsr:|[\w+]+://[^/]*)", "", word))[0]
    names = [_EXTENSION.sub("", _VERSION.split(part)[0]) for part in re.split(r"[/\\]", path)]
    names = [name for name in names if name.strip(".") and not name.startswith("@")]
    name = next((name for name in reversed(names) if name.lower() not in _GENERIC), names[-1] if names else "")
    return name if _NAME.fullmatch(name) and not _SECRET.search(name) and not holds_token(name) else ""
