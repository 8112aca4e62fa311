"""Derives a server's name from the command that starts it.

The name is written to the audit log and to stderr, so a word that could be a secret is never used. A launcher's options are
parsed as the launcher parses them. An unknown option may take a secret as its value: then the server is named after the
launcher. The code after a shell's or Python's `-c` names a server only if it is simple: see `_shell_command` and `_module`.
"""

import re
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from mcpguard.text.redaction import holds_token


class _Launcher(NamedTuple):
    """How a launcher's command line names the program that it starts.

    Attributes:
        flags: Letters of short options that take no value.
        valued: Letters of short options that take a value: the rest of the word, or the next word.
        attached: Letters of short options whose value, if any, is the rest of the word.
        named: Letters of short options whose value is the program: a module or a file.
        long_flags: Long options that take no value, also those with one dash.
        long_valued: Long options that take a value.
        long_named: Long options whose value is the program.
        ahead: Subcommands, which precede the program.
        skipped: How many arbitrary words precede the program.
        is_code: Whether a word that is not an option is code.
        code: Letters of short options whose value is code.
        before_code: Letters of short options after which the first word that is not an option is code.
        read_code: Returns the program that the code of `code` and `before_code` starts, and its arguments; empty if unknown.
    """

    flags: str = ""
    valued: str = ""
    attached: str = ""
    named: str = ""
    long_flags: str = ""
    long_valued: str = ""
    long_named: str = ""
    ahead: str = ""
    skipped: int = 0
    is_code: bool = False
    code: str = ""
    before_code: str = ""
    read_code: Callable[[str], list[str]] = lambda _: []


def _shell_command(code: str) -> list[str]:
    """The words of the last command of a shell's code: the server in `cd /srv/crm && exec npx -y @acme/crm`.

    Of a pipeline it is the first command. Empty if the code has more syntax than lists, pipelines, quotes and redirections.
    """
    import shlex  # loaded only for code

    if re.search(r"[`()]|<<|[^&]&(?![&0-9])", code):
        return []
    lexer = shlex.shlex(code, posix=True, punctuation_chars=";&|<>\n")
    lexer.whitespace, lexer.whitespace_split, lexer.commenters = " \t\r", True, ""
    try:
        words = list(lexer)
    except ValueError:  # a quotation mark is not closed
        return []
    commands: list[list[str]] = [[]]
    is_over = False
    for word in words:
        if set(word) <= set(";&\n"):
            commands.append([])
            is_over = False
        elif is_over or word[0] in "|<>":
            is_over = True  # neither the rest of a pipeline nor a redirection names the server
        else:
            commands[-1].append(word)
    last = next((command for command in reversed(commands) if command), [])
    while last and (re.match(r"\w+=", last[0]) or last[0] in {"exec", "command"}):
        last.pop(0)
    return [] if not last or last[0] in _SYNTAX or any(word.startswith("#") for word in last) else last


_SYNTAX: Final = frozenset(
    """! . : [ [[ alias bg break builtin case cd continue disown do done echo elif else esac eval exit export false fg fi for
    function hash if jobs kill local popd printf pushd pwd read readonly return select set shift sleep source test then time
    trap true type typeset ulimit umask unalias unset until wait while { }""".split()
)
"""Reserved words and builtins of shells, which start no server."""


def _module(code: str) -> list[str]:
    """The module that Python code imports last: the server in `from crm.server import main; main()`; empty if there is none."""
    statement = r"(?:^|[;\n])[ \t]*(?:from[ \t]+([A-Za-z_][\w.]*)[ \t]+import\b|import[ \t]+([A-Za-z_][\w.]*)[ \t]*(?=[;\n]|$))"
    names = [one or other for one, other in re.findall(statement, code)]
    return next(([name] for name in reversed(names) if name.split(".")[0] not in _USUAL_MODULES), [])


_USUAL_MODULES: Final = frozenset("anyio asyncio importlib json logging os pathlib runpy signal sys time warnings".split())
"""Modules that start-up code imports, and that are no server."""

_SHELL: Final = _Launcher(
    flags="abefhiklmnptuvxBCEHPT",
    before_code="c",
    read_code=_shell_command,
    valued="oO",
    long_flags="--login --norc --noprofile --posix --restricted",
    long_valued="--rcfile --init-file",
)
_PYTHON: Final = _Launcher(flags="bBdEhiIOPqRsStuvVx0123456789.", valued="WX", named="m", code="c", read_code=_module)
_NODE: Final = _Launcher(
    flags="i",
    valued="Cr",
    long_flags="--watch",
    long_valued="""--require --import --loader --experimental-loader --conditions --env-file --tsconfig --title
        --max-old-space-size""",
    ahead="watch",
)
_NPX: Final = _Launcher(
    flags="yqsd",
    valued="pw",
    long_flags="--yes --quiet --silent --offline --prefer-offline --prefer-online --ignore-scripts --ignore-existing --bun",
    long_valued="--package --registry --cache --userconfig --prefix --loglevel --cwd --workspace --filter",
)
_NPM: Final = _NPX._replace(ahead="exec run x dlx")
_UV: Final = _Launcher(
    flags="qvnUs",
    valued="bcfipPwC",
    named="m",
    long_flags="""--quiet --verbose --offline --isolated --refresh --reinstall --upgrade --frozen --locked --native-tls --script
        --managed-python --all-extras --active --exact --dev --compile-bytecode""",
    long_valued="""--from --with --with-editable --with-requirements --directory --project --python --index --index-url
        --extra-index-url --default-index --find-links --extra --group --env-file --config-file --cache-dir --constraints
        --overrides --package --spec --pip-args --refresh-package --python-platform --exclude-newer --index-strategy
        --keyring-provider --resolution --prerelease --link-mode --allow-insecure-host --color""",
    long_named="--module",
    ahead="run tool x",
)
_DOCKER: Final = _Launcher(
    flags="itdPqDT",
    valued="acefhlmpuvwH",
    long_flags="""--rm --interactive --tty --detach --init --privileged --read-only --publish-all --quiet --debug --tls
        --tlsverify --replace --oom-kill-disable --build --quiet-build --quiet-pull --remove-orphans --service-ports
        --use-aliases""",
    long_valued="""--add-host --annotation --attach --blkio-weight --build-arg --cap-add --cap-drop --cgroup-parent --cidfile
        --config --context --cpu-shares --cpus --cpuset-cpus --device --dns --dns-search --entrypoint --env --env-file --expose
        --file --gpus --group-add --health-cmd --host --hostname --ip --ipc --label --label-file --link --log-driver --log-level
        --log-opt --mac-address --memory --memory-swap --mount --name --net --network --network-alias --pid --pids-limit
        --platform --profile --project-directory --project-name --publish --pull --restart --runtime --secret --security-opt
        --shm-size --stop-signal --stop-timeout --storage-opt --sysctl --tlscacert --tlscert --tlskey --tmpfs --ulimit --user
        --userns --uts --volume --volume-driver --volumes-from --workdir""",
    ahead="compose container run exec",
)
_POWERSHELL: Final = _Launcher(
    long_flags="-noprofile -nop -nologo -nol -noninteractive -noni -noexit -sta -mta -login",
    long_valued="-executionpolicy -ep -ex -windowstyle -w -workingdirectory -wd -version -inputformat -outputformat",
    long_named="-file -f",
    is_code=True,
)
_LAUNCHERS: Final = {
    **dict.fromkeys("ash bash dash ksh sh zsh".split(), _SHELL),
    **dict.fromkeys("py pypy python pythonw".split(), _PYTHON),
    **dict.fromkeys("node nodejs tsx ts-node".split(), _NODE),
    **dict.fromkeys("bunx npx pnpx".split(), _NPX),
    **dict.fromkeys("uv uvx".split(), _UV),
    **dict.fromkeys("docker docker-compose nerdctl podman podman-compose".split(), _DOCKER),
    **dict.fromkeys("powershell pwsh".split(), _POWERSHELL),
    "bun": _Launcher(
        flags="bi",
        valued="r",
        long_flags="--bun --hot --watch --smol --silent",
        long_valued="--preload --cwd --env-file",
        ahead="run x",
    ),
    "cmd": _Launcher(ahead="/c /C /d /D /s /S /q /Q"),
    "deno": _Launcher(
        flags="Aqr",
        valued="cL",
        attached="EINRSW",
        long_flags="--quiet --reload --cached-only --frozen --watch --check --node-modules-dir --prompt",
        long_valued="--config --import-map --lock --cert --location --seed --log-level --env-file",
        ahead="run",
    ),
    "doas": _Launcher(flags="nLs", valued="aCu"),
    "dotnet": _Launcher(valued="cfrv", long_valued="--project --framework --configuration", ahead="exec run"),
    "env": _Launcher(flags="i0v", valued="uC", long_flags="--ignore-environment --debug", long_valued="--unset --chdir"),
    "fish": _Launcher(flags="iln", long_flags="--interactive --login --private", code="c", read_code=_shell_command),
    "go": _Launcher(
        long_flags="-race -v -x -a -trimpath",
        long_valued="-C -exec -tags -mod -modfile -ldflags -gcflags",
        ahead="run",
    ),
    "java": _Launcher(
        attached="DX",
        long_flags="-ea -esa -server -client --enable-preview",
        long_valued="-cp -classpath --class-path -p --module-path --add-modules --add-opens --add-exports",
        long_named="-jar -m --module",
    ),
    "nice": _Launcher(flags="0123456789", valued="n", long_valued="--adjustment"),
    "nohup": _Launcher(),
    "npm": _NPM._replace(valued="pwC"),
    "perl": _Launcher(flags="acnpswWtTuUX", valued="I", attached="0CDFilMmx"),
    "php": _Launcher(flags="aCHilmnqsvw", valued="cdStz", named="f"),
    "pipx": _UV._replace(named="", long_named="", ahead="run"),
    "pnpm": _NPM._replace(flags="qrsw", valued="CF"),
    "poetry": _Launcher(
        flags="nqv", valued="CP", long_flags="--quiet --verbose", long_valued="--directory --project", ahead="run"
    ),
    "ruby": _Launcher(flags="acdlnpsSvwy", valued="CEIr", attached="0FKTWix"),
    "setsid": _Launcher(flags="cfw", long_flags="--ctty --fork --wait"),
    "ssh": _Launcher(flags="46AaCfgGKkMNnqsTtVvXxYy", valued="bBcDEeFIiJLlmOopQRSWw", skipped=1),
    "stdbuf": _Launcher(valued="ioe", long_valued="--input --output --error"),
    "sudo": _Launcher(
        flags="AbEeHiKklnPSsVv",
        valued="CDghpRrTtUu",
        long_flags="--preserve-env --login --background --non-interactive --set-home --stdin",
        long_valued="--user --group --chdir --host --prompt --chroot",
    ),
    "time": _Launcher(flags="apqv", valued="fo"),
    "timeout": _Launcher(
        flags="v",
        valued="ks",
        long_flags="--foreground --preserve-status --verbose",
        long_valued="--kill-after --signal",
        skipped=1,
    ),
    "yarn": _NPM._replace(valued="p"),
}
"""Launchers by name. Whether an option that is not listed takes a value is unknown."""

_OF_PYTHON: Final = frozenset("pipx py pypy python pythonw uv uvx".split())
"""Launchers of modules and packages of Python, which has no names that differ in hyphens and underscores alone."""

_IS_FLAG: Final = re.compile(
    r"--(?:allow|deny|disable|enable|experimental|inspect|no|preserve-symlinks|throw|trace|unstable)(?:-[a-z0-9-]+)?"
)
"""Options of many launchers that take no value, or have it in the same word."""

_CODE: Final = frozenset("eval exec repl set export".split())
"""Words that are followed by code instead of a program."""

_HAS_VALUE: Final = frozenset("--no-extra --no-group --no-install-package --no-build-package --no-binary-package".split())
"""Exceptions to `_IS_FLAG`."""

_FOLDERS: Final = frozenset("--chdir --cwd --directory --prefix --project".split())
"""Options of launchers that name the folder of the program."""

_GENERIC: Final = frozenset("__main__ app bin build cli cmd dist index lib main mcp mod out server src start".split())
_EXTENSION = re.compile(r"\.(?:bat|cjs|cmd|dll|exe|git|go|jar|js|mjs|mts|php|pl|ps1|py|pyz|rb|sh|ts)$", re.IGNORECASE)
_SCHEME = re.compile(r"(?:npm|jsr|github|gitlab|bitbucket|gist|file|git|https?|ssh|git\+\w+):(?://)?")
_USER_INFO = re.compile(r"(?<=://)[^/]*@")
_VERSION = re.compile(r"(?<=.)@|[=<>~!]=|[<>\[;]|:(?=[\w.-]+(?:@|$))")

_NAME = re.compile(r"\w[\w.+-]{0,63}")
"""The form of a program's, module's, package's or image's name."""
_SECRET = re.compile(r"(?=[A-Za-z_]*[0-9])[A-Za-z0-9_]{24}")
"""Not a name: so many letters and digits in a row are a key or a hash."""


def server_name(command: Sequence[str]) -> str:
    """A name for the server that `command` starts, without launchers, options, versions and folders.

    >>> server_name(["npx", "-y", "@modelcontextprotocol/server-everything@2026.7.1", "stdio"])
    'server-everything'
    >>> server_name(["node", "/srv/crm/dist/index.js"]), server_name(["docker", "run", "-i", "--rm", "mcp/git:latest"])
    ('crm', 'git')
    >>> server_name(["python", "-m", "mcp_server_git"]), server_name(["uvx", "mcp-server-git==1.2"])
    ('mcp-server-git', 'mcp-server-git')
    >>> server_name(["bash", "-ec", "exec crm --api-key 5ecret"]), server_name(["python", "-c", "import crm; crm.main()"])
    ('crm', 'crm')
    """
    words, name, folder = list(command), "", ""
    while words and (launched := _launcher(words[0])):
        name = launched
        rest = _program(_LAUNCHERS[launched], words[1:])
        folder = _folder(words[: max(0, len(words) - len(rest))]) or folder  # the words of code may be more
        words = rest
    # A launcher's argument with spaces can hold more than a path; the first word of the command cannot
    is_path = words and not (name and re.search(r"\s", words[0]))
    bare = _bare(words[0], folder) if is_path else ""
    if name in _OF_PYTHON and bare and not re.search(r"[/\\]|\.py$", words[0]):
        bare = bare.replace("_", "-")
    return bare or name or "server"


def _folder(words: Sequence[str]) -> str:
    """The folder in which a launcher starts the program, by its options; empty if they name none."""
    for word, following in zip(words, [*words[1:], ""], strict=False):
        option, is_joined, value = word.partition("=")
        if option in _FOLDERS:
            return value if is_joined else following
    return ""


def _launcher(word: str) -> str:
    """The name of the launcher that a word names, without folder, extension and version; empty if it names none."""
    name = _EXTENSION.sub("", re.split(r"[/\\]", word)[-1]).lower()
    name = re.sub(r"[0-9.]+$", "", name)
    return name if name in _LAUNCHERS else ""


def _program(launcher: _Launcher, words: list[str]) -> list[str]:
    """The program that a launcher starts, and its arguments; empty if they cannot be found."""
    skipped = launcher.skipped
    has_code = False
    while words:
        word, *words = words
        if word in launcher.ahead.split() or (re.match(r"\w+=(?!=)", word) and not has_code):
            continue
        if word == "--" and not has_code:
            return words[skipped:]
        if not word.startswith("-"):
            if skipped:
                skipped -= 1
                continue
            if has_code:
                return launcher.read_code(word)
            return [] if launcher.is_code or word in _CODE else [word, *words]
        has_code = has_code or bool(set(word[1:]) & set(launcher.before_code) and word[1] != "-")
        found = _after_option(launcher, word, words)
        if found is None:
            return []
        words, is_program = found
        if is_program:
            return words
    return []


def _after_option(launcher: _Launcher, word: str, words: list[str]) -> tuple[list[str], bool] | None:
    """The words after an option and its value, and whether they begin with the program; None if the option is unknown."""
    option, has_value, value = word.partition("=")
    option = option.lower() if launcher.is_code else option
    if option in launcher.long_named.split():
        return ([value, *words] if has_value else words), True
    if option in launcher.long_valued.split():
        return (words if has_value else words[1:]), False
    if option in launcher.long_flags.split() or (_IS_FLAG.fullmatch(option) and option not in _HAS_VALUE):
        return words, False
    return None if word.startswith("--") else _after_letters(launcher, word[1:], words)


def _after_letters(launcher: _Launcher, letters: str, words: list[str]) -> tuple[list[str], bool] | None:
    """`_after_option` for one short option, or several in one word."""
    rest = letters.lstrip(launcher.flags + launcher.before_code)
    if letters and (not rest or rest[0] in launcher.attached):
        return words, False
    if rest and rest[0] in launcher.valued:
        return (words if rest[1:] else words[1:]), False
    if rest and rest[0] in launcher.named:
        return ([rest[1:], *words] if rest[1:] else words), True
    if rest and rest[0] in launcher.code:
        return launcher.read_code(rest[1:] or "".join(words[:1])), True
    return None


def _bare(word: str, folder: str) -> str:
    """The name in a path, package, image or URL; empty if it does not have the form of a name.

    Args:
        word: The path, package, image or URL.
        folder: The folder to which a path is relative; empty if it is unknown.
    """
    word = _USER_INFO.sub("", word)
    scheme = _SCHEME.match(word)
    if scheme:
        word = re.split(r"[#?]", word[scheme.end() :])[0]
    elif folder and not re.match(r"[/\\]|[A-Za-z]:", word):
        word = f"{folder}/{word}"
    parts = [part for part in re.split(r"[/\\]", word) if part not in {"", ".", ".."}]
    if not parts:
        return ""
    *folders, last = [_VERSION.split(part)[0] for part in parts]
    last = last.split("#")[0]
    bare = _EXTENSION.sub("", last)
    if bare != last:
        bare = re.sub(r"(?<=.)-v?[0-9]+(?:\.[0-9]+)+.*$", "", bare)  # crm-1.2.3.jar
    names = [bare, *reversed(folders)]
    name = next((name for name in names if name.lower() not in {"", *_GENERIC} and not name.startswith("@")), names[0])
    return name if _NAME.fullmatch(name) and not _SECRET.search(name) and not holds_token(name) else ""
