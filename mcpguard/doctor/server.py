"""Starts a server behind mcpguard as a client would, and lists its tools; or checks that, with the rules that apply to each."""

import contextlib
import logging
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TextIO

import anyio
from mcp import Client, Implementation, MCPError, StdioServerParameters, stdio_client
from mcp.types import Tool, ToolAnnotations

from mcpguard import __version__
from mcpguard.config import Settings
from mcpguard.doctor import Check, failed_by, good
from mcpguard.errors import CommandError, McpguardError, PolicyError
from mcpguard.identity.caller import Identity
from mcpguard.identity.server_name import server_name
from mcpguard.light_typing import Final, Literal, NamedTuple
from mcpguard.policy.explain import rule_matches
from mcpguard.policy.file import PolicyFile
from mcpguard.policy.model import Call, Policy
from mcpguard.policy.suggest_by_tools import ServerTool
from mcpguard.reading.explaining import caller
from mcpguard.relay.process import find_program
from mcpguard.text.printing import plural, printable
from mcpguard.text.redaction import masked_output, secrets_of

ANSWER_S: Final = 30.0
"""How long a server may take to start and list its tools. A launcher may have to fetch it first."""

_MOST_PAGES: Final = 100
"""How many pages of tools are read."""

_LAST_LINES: Final = 64
_LONGEST_LINE: Final = 65_536
"""How many lines on stderr are kept, and how much of each."""

_LAST_WORDS_S: Final = 2.0
"""How long to read stderr after the server has ended. What it has left running may keep it open."""

_OURS: Final = "mcpguard: "
_EXITED: Final = f"{_OURS}server exited with "

_Mode = Literal["auto", "legacy"]


class Listed(NamedTuple):
    """What a server said about itself.

    Attributes:
        name: Its name and version.
        protocol: The version of the protocol.
        tools: Its tools.
        took_s: How long it took.
    """

    name: str
    protocol: str
    tools: list[ServerTool]
    took_s: float


def checks(
    settings: Settings,
    command: Sequence[str],
    *,
    options: Sequence[str],
    server: str | None,
    folder: str = "",
    answer_s: float = ANSWER_S,
) -> Iterator[Check]:
    """Start a server behind mcpguard, and check that it answers.

    Args:
        settings: The settings that `options` and the variables give.
        command: The server's command, without mcpguard.
        options: The options of `mcpguard run`.
        server: The server's name; None to derive it from the command.
        folder: Where it starts; empty for the working folder.
        answer_s: How long the server may take.
    """
    name = named(server, command)
    try:
        found = listed(name, command, options=options, folder=folder, answer_s=answer_s)
    except McpguardError as error:
        yield failed_by("server", error)
        return
    tools = plural(len(found.tools), "tool")
    yield good("server", printable(f"{name}: {found.name}, protocol {found.protocol}, {tools}, ready in {found.took_s:.1f} s"))
    yield from _rules(settings, name, [tool.name for tool in found.tools])


def named(server: str | None, command: Sequence[str]) -> str:
    """The name of a server: the given one, that in `MCPGUARD_SERVER`, or the one derived from its command."""
    return server or os.environ.get("MCPGUARD_SERVER") or server_name(command)


def listed(
    name: str, command: Sequence[str], *, options: Sequence[str], folder: str = "", answer_s: float = ANSWER_S
) -> Listed:
    """Start a server behind mcpguard, and ask it for its tools.

    Args:
        name: The server's name, for the messages.
        command: The server's command, without mcpguard.
        options: The options of `mcpguard run`.
        folder: Where it starts; empty for the working folder.
        answer_s: How long the server may take.

    Raises:
        McpguardError: It cannot be started, ends, does not answer, or not as it should. The message is printable and has no
            secrets.
    """
    cwd = Path(folder)
    if not os.path.isdir(cwd):  # noqa: PTH112 - `Path.is_dir` raises without permission
        raise McpguardError(printable(f"{name}: there is no folder {folder}"), "correct cwd in the client's file")
    try:
        find_program(os.path.join(folder, command[0]) if os.path.dirname(command[0]) else command[0], os.environ)  # noqa: PTH118, PTH120
    except CommandError as error:  # its exit status is one of `run`
        raise McpguardError(error.message, error.hint) from error
    guarded = [sys.executable, "-P", "-m", "mcpguard", "run", *options, "--", *command]  # -P: import nothing from `folder`
    found, said = _start(guarded, cwd, answer_s, "auto")
    if isinstance(found, str) and any(line.startswith(_EXITED) for line in said):
        # The first request of today's clients is `server/discover`. Servers on the Python SDK up to 1.8 exit on such a
        # method, which they do not know, and serve older clients.
        found, said = _start(guarded, cwd, answer_s, "legacy")
    if isinstance(found, str):
        raise _failure(found, said, secrets_of(command, os.environ))
    return found


def _start(command: Sequence[str], cwd: Path, answer_s: float, mode: _Mode) -> tuple[Listed | str, list[str]]:
    """Start a server; returns what it lists, or in a few words why it lists nothing, and the last lines on stderr.

    Args:
        command: The whole command.
        cwd: Where it starts.
        answer_s: How long the server may take.
        mode: How to connect, as the SDK's client names it; `legacy` begins with `initialize`.
    """
    reading, writing = os.pipe()
    said: deque[bytes] = deque(maxlen=_LAST_LINES)  # a server may write gigabytes

    def read() -> None:
        with open(reading, "rb") as lines:  # noqa: PTH123 - a descriptor
            said.extend(iter(lambda: lines.readline(_LONGEST_LINE), b""))

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    with open(writing, "w", encoding="utf-8") as errors:  # noqa: PTH123
        found = _listed(command, cwd, errors, answer_s, mode)
    reader.join(_LAST_WORDS_S)
    return found, [line for part in said.copy() if (line := part.decode("utf-8", "replace").strip())]


def _listed(command: Sequence[str], cwd: Path, errors: TextIO, answer_s: float, mode: _Mode) -> Listed | str:
    """What a server lists, or in a few words why it lists nothing; see `_start`."""
    logging.getLogger("mcp").setLevel(logging.CRITICAL + 1)  # the SDK logs what the result says anyway
    try:
        return anyio.run(_ask, command, cwd, errors, answer_s, mode)
    except Exception as error:  # the SDK raises almost anything for a server that misbehaves
        cause: BaseException = error
        while isinstance(cause, BaseExceptionGroup):
            cause = cause.exceptions[0]
        if isinstance(cause, TimeoutError):
            return f"no answer within {answer_s:g} s"
        if isinstance(cause, MCPError):
            return f"it answers with an error: {cause}"
        return f"it does not speak MCP: {type(cause).__name__}"


async def _ask(command: Sequence[str], cwd: Path, errors: TextIO, answer_s: float, mode: _Mode) -> Listed:
    """Connect to a server and list its tools.

    Raises:
        Exception: It does not answer, or not as it should.
    """
    environ = {**os.environ, "MCPGUARD_QUIET": "0"}  # mcpguard must tell that the server has exited
    parameters = StdioServerParameters(command=command[0], args=list(command[1:]), env=environ, cwd=cwd)
    info = Implementation(name="mcpguard-doctor", version=__version__)
    begin_s = time.monotonic()
    async with stdio_client(parameters, errlog=errors) as streams:
        with anyio.fail_after(answer_s):  # not earlier: a limit that ends while the server starts leaves it running
            async with Client(contextlib.nullcontext(streams), mode=mode, client_info=info, cache=None) as client:
                tools: dict[str, ServerTool] = {}  # some servers list a tool again, on another page
                cursor: str | None = None
                for _ in range(_MOST_PAGES):
                    page = await client.list_tools(cursor=cursor)
                    tools |= {tool.name: _tool(tool) for tool in page.tools}
                    cursor = page.next_cursor
                    if cursor is None:
                        break
                who = client.server_info
                name = f"{who.name} {who.version}".strip() if who else "a server without a name"
                return Listed(name, client.protocol_version, [*tools.values()], time.monotonic() - begin_s)


def _tool(tool: Tool) -> ServerTool:
    said = tool.annotations or ToolAnnotations()
    hints = (said.read_only_hint, said.destructive_hint, said.idempotent_hint, said.open_world_hint)
    return ServerTool(tool.name, *hints)


def _failure(why: str, said: Sequence[str], secrets: Sequence[str]) -> McpguardError:
    """The error of a server that lists no tools, with the last line that it wrote to stderr."""
    theirs = [line for line in said if not line.startswith((_OURS, "hint: "))]
    exited = next((line.removeprefix(_OURS) for line in said if line.startswith(_EXITED)), "")
    own = [pair for pair in pairwise(said) if pair[0].startswith(_OURS) and pair[1].startswith("hint: ")]
    if own and not (theirs and exited):  # mcpguard itself has ended with an error, or one that the entry starts
        message, hint = (own[-1][0].removeprefix(_OURS), own[-1][1].removeprefix("hint: "))
        return McpguardError(printable(masked_output(message, secrets)), printable(masked_output(hint, secrets)))
    last = f"; its last line on stderr: {theirs[-1]}" if theirs else "; it wrote nothing to stderr"
    hint = "run the command by itself in a terminal: it must be an MCP server on stdio"
    return McpguardError(printable(masked_output(f"{exited or why}{last}", secrets)), hint)


def _rules(settings: Settings, server: str, tools: Sequence[str]) -> Iterator[Check]:
    """A line for each tool, or for tools to which the same rules apply: the rules that apply to a call of it from here."""
    policy = PolicyFile(settings.policy, named=settings.policy_named).begin()
    if isinstance(policy, PolicyError):
        return  # the check of the policy reports it
    try:
        who = caller(settings, user=None, agent=None, token=None, roles=(), scopes=(), notify=lambda _: None)
    except McpguardError:
        return  # the check of the identity reports it
    alike: dict[str, list[str]] = {}
    for tool in tools:
        alike.setdefault(_applying(policy, who, server, tool), []).append(tool)
    for rules, names in alike.items():
        yield good(printable(f"tool{'s' if len(names) > 1 else ''} {', '.join(names)}"), printable(rules))


def _applying(policy: Policy, who: Identity, server: str, tool: str) -> str:
    call = Call(who.user, who.agent(None)[0], server, tool, who.roles, who.scopes)
    found = [one for one in rule_matches(policy, call) if one.status == "applies"]
    rules = [
        f"{one.rule.limits_text.replace(' ', ' and ')} by rule {one.at + 1} ({one.rule.text})"
        + (" in observe mode" if one.rule.observe else "")
        for one in found
    ]
    return "; ".join(rules) or "no rule applies, so nothing limits it"
