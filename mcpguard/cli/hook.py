"""`mcpguard hook`: what a host's own hooks start, to tell the guard what the wire does not."""

import contextlib
import json
import os
import threading
import time
from collections.abc import Iterator
from typing import Any, Final

import click

from mcpguard.cli._command import Group
from mcpguard.errors import ExitStatus

TIMEOUT_S: Final = 1.0
"""How long a hook takes at most, whatever it waits for: the call waits for it. The store has its `timeout_ms`."""

MAX_INPUT_BYTES: Final = 16 * 1024 * 1024
"""The call's arguments are part of a hook's input; of a longer one nothing is noted."""


class _Harmless(Group):
    """A group whose mistakes on the command line are said, but never with exit status 2, which would forbid the call."""

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        with _harmless():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        with _harmless():
            return super().invoke(ctx)


@contextlib.contextmanager
def _harmless() -> Iterator[None]:
    try:
        yield
    except click.UsageError as error:
        from mcpguard.core.text import printable  # a call waits for the hook

        click.echo(printable(f"mcpguard: {error.format_message()}"), err=True)
        raise click.exceptions.Exit(ExitStatus.OK) from error
    except click.exceptions.Exit as error:  # after help
        raise click.exceptions.Exit(ExitStatus.OK) from error


@click.group("hook", cls=_Harmless, short_help="What a client's own hooks start.")
def command() -> None:
    """What a client's own hooks start, to tell the guard what the protocol does not.

    \b
    Example:
      mcpguard hook claude-code --help
    """


@command.command("claude-code", short_help="Tell Claude Code's subagents apart.")
@click.option("--config", "config_file", metavar="F", help="The settings file, if the wrappers are given one.")
@click.option("--store", metavar="URL", help="The wrappers' store, if it is not the one of the settings.")
def claude_code(config_file: str | None, store: str | None) -> None:
    """Note which agent of Claude Code makes a call, so that rules and audit know its subagents.

    Claude Code starts it before each call (PreToolUse). With it a call of the Explore subagent comes from
    "Claude Code::subagent::Explore". It prints nothing, takes a second at most, waits for the store no longer than a call
    does (timeout_ms), and never stops a call. It needs the wrappers' store: give it the options, or in front of it the
    variables, that your server entries have.

    In .claude/settings.json, or ~/.claude/settings.json for all projects:

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
    watchdog = threading.Timer(TIMEOUT_S, os._exit, (ExitStatus.OK,))
    watchdog.daemon = True
    watchdog.start()
    with contextlib.suppress(BaseException):  # whatever it is, it is no reason to stop a call
        _note(config_file, store)
    os._exit(ExitStatus.OK)  # at once: nobody is to wait for a thread that waits for a lock


def _note(config_file: str | None, store: str | None) -> None:
    from mcpguard.core.claude_code import agent_note

    note = agent_note(json.loads(_input()))
    if note is None:
        return
    from mcpguard import config

    settings = config.load(os.environ, config=config_file, store=store)
    wall_us, timeout_s = time.time_ns() // 1000, settings.timeout_ms / 1000
    settings.address.leave_note(settings.namespace, note, wall_us=wall_us, timeout_s=timeout_s)


def _input() -> bytes:
    """All of stdin.

    Raises:
        ValueError: It is too long.
        OSError: It is closed.
    """
    data = bytearray()
    while chunk := os.read(0, 1 << 16):
        data += chunk
        if len(data) > MAX_INPUT_BYTES:
            raise ValueError("too long")
    return bytes(data)
