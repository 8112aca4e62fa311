"""`mcpguard hook`: commands for the hooks of clients. They tell mcpguard what the protocol does not."""

import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, Final, NoReturn, TypeVar

import click

from mcpguard.cli.base import Command, Group
from mcpguard.errors import ExitStatus

TIMEOUT_S: Final = 1.0
"""The longest that a hook runs, because a call waits for it. It waits for the store at most `timeout_ms`."""

MAX_INPUT_BYTES: Final = 16 * 1024 * 1024
"""The longest input, which includes the call's arguments. The hook ignores a longer one."""


@click.group(
    "hook",
    Group,
    parts={
        "claude-code": ("hook:claude_code", "Tell Claude Code's subagents apart."),
        "codex": ("hook:codex", "Tell Codex's subagents apart by name."),
        "copilot": ("hook:copilot", "Tell Copilot CLI's subagents apart."),
    },
)
def hook() -> None:
    """Commands for the hooks of clients. A hook tells mcpguard which agent makes a call.

    \b
    Examples:
      mcpguard hook claude-code --help
      mcpguard hook codex --help
      mcpguard hook copilot --help
    """


_Function = TypeVar("_Function", bound=Callable[..., Any])


def _store_options(function: _Function) -> _Function:
    config = click.option("--config", "config_file", metavar="F", help="The settings file, if the server entries name one.")
    store = click.option("--store", metavar="URL", help="The server entries' store, if the settings do not name it.")
    return config(store(function))


@click.command("claude-code", Command)
@_store_options
def claude_code(config_file: str | None, store: str | None) -> None:
    """Note which agent of Claude Code makes a call, so that rules and the audit log can tell subagents apart.

    Claude Code runs this command before each call (PreToolUse). A call of the Explore subagent then has the agent
    "Claude Code::subagent::Explore". The command prints nothing and never stops a call. It takes at most a second, and waits
    for the store no longer than a call does (timeout_ms). It must use the same store as your server entries, so give it the
    same options or variables. Other programs that run Claude Code's hooks, such as VS Code and Cursor, are not affected.

    Put this into .claude/settings.json, or into ~/.claude/settings.json for all projects:

    \b
      {
        "hooks": {
          "PreToolUse": [
            {
              "matcher": "mcp__.*",
              "hooks": [{
                "type": "command",
                "command": "mcpguard hook claude-code",
                "timeout": 5
              }]
            }
          ]
        }
      }
    """
    _run("claude-code", config_file, store)


@click.command("codex", Command)
@_store_options
def codex(config_file: str | None, store: str | None) -> None:
    """Note which agent of Codex makes a call, so that rules and the audit log know the names of subagents.

    Codex runs this command before each call (PreToolUse). A call of the explorer subagent then has the agent
    "Codex::subagent::explorer". Without the hook it has the agent "Codex::subagent::default", because Codex sends the tier but
    not the name. The command prints nothing and never stops a call. It takes at most a second, and waits for the store no
    longer than a call does (timeout_ms). It must use the same store as your server entries, so give it the same options or
    variables.

    Put this into ~/.codex/hooks.json. Then start Codex, enter /hooks, and trust the hook: Codex runs no hook that you have not
    trusted.

    \b
      {
        "hooks": {
          "PreToolUse": [
            {
              "matcher": "mcp__.*",
              "hooks": [{
                "type": "command",
                "command": "mcpguard hook codex",
                "timeout": 5
              }]
            }
          ]
        }
      }
    """
    _run("codex", config_file, store)


@click.command("copilot", Command)
@_store_options
def copilot(config_file: str | None, store: str | None) -> None:
    """Note which agent of GitHub Copilot CLI makes a call, so that rules and the audit log can tell subagents apart.

    Copilot CLI runs this command before each call of an MCP tool (preMcpToolCall). A call of the general-purpose subagent then
    has the agent "GitHub Copilot CLI::subagent::general-purpose". For a subagent's call the command prints the call's _meta
    with the call's id added (mcpguard/toolCallId). For all other calls it prints nothing. It never stops a call. It takes at
    most a second, and waits for the store no longer than a call does (timeout_ms). It must use the same store as your server
    entries, so give it the same options or variables.

    Put this into ~/.copilot/hooks/mcpguard.json:

    \b
      {
        "version": 1,
        "hooks": {
          "preMcpToolCall": [
            {
              "type": "command",
              "bash": "mcpguard hook copilot",
              "powershell": "mcpguard hook copilot",
              "timeoutSec": 5
            }
          ]
        }
      }
    """
    _run("copilot", config_file, store)


def _run(name: str, config_file: str | None, store: str | None) -> NoReturn:
    watchdog = threading.Timer(TIMEOUT_S, os._exit, (ExitStatus.OK,))
    with contextlib.suppress(BaseException):  # no error of the hook may stop a call
        watchdog.start()
        output = _note(name, config_file, store)
        while output:
            output = output[os.write(1, output) :]
    os._exit(ExitStatus.OK)  # at once: the end of the interpreter would wait for the watchdog


def _note(name: str, config_file: str | None, store: str | None) -> bytes:
    """Leave the note, if there is one to leave. Returns what the hook prints.

    Raises:
        Exception: The input is not JSON, or the note could not be written.
    """
    from mcpguard.identity.client_agents import HOOKS, agent_note, meta_with_id

    given = sys.stdin.buffer.read(MAX_INPUT_BYTES + 1)
    if len(given) > MAX_INPUT_BYTES:
        return b""
    hook_input = json.loads(given)
    note = agent_note(HOOKS[name], hook_input, os.environ)
    if note is None:
        return b""
    from mcpguard import config

    settings = config.load(os.environ, config=config_file, store=store)
    wall_us, timeout_s = time.time_ns() // 1000, settings.timeout_ms / 1000
    settings.address.leave_note(settings.namespace, note, wall_us=wall_us, timeout_s=timeout_s)
    call_meta = meta_with_id(hook_input, note.key) if HOOKS[name].adds_id else None
    return b"" if call_meta is None else json.dumps({"metaToUse": call_meta}, allow_nan=False).encode() + b"\n"
