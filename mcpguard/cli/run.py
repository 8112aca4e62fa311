"""`mcpguard run`, `hook` and `demo` for click, which prints their help and reports errors of their command lines."""

import signal
from collections.abc import Sequence
from pathlib import PurePath
from typing import Any, Final

import click

from mcpguard import run_options
from mcpguard.cli import start
from mcpguard.cli.commands import Command, CommandGroup
from mcpguard.cli.options import files, seen
from mcpguard.errors import UsageError
from mcpguard.hook.run import run as run_hook
from mcpguard.run_options import HOOK_CLIENTS, HOOK_OPTIONS, OPTIONS, Option


def click_option(option: Option) -> click.Option:
    """The option for click."""
    names = [option.name, option.key]
    if option.is_flag:
        return click.Option(names, is_flag=True, default=option.default, help=option.help)
    kind = click.Choice(option.choices) if option.choices else click.STRING
    is_name = option.key in {"server", "user", "agent"}
    complete = files if option.key in {"policy", "config"} else seen(option.key) if is_name else None
    return click.Option(names, metavar=option.metavar or None, type=kind, help=option.help, shell_complete=complete)


@click.command(
    "run",
    cls=Command,
    context_settings={"ignore_unknown_options": False, "allow_interspersed_args": False},
    params=[click_option(option) for option in OPTIONS],
)
@click.argument("argv", nargs=-1, type=click.UNPROCESSED, metavar="[--] COMMAND [ARG]...", shell_complete=files)
def run(argv: tuple[str, ...], **options: Any) -> None:
    """Start COMMAND, a stdio MCP server, and limit its tool calls.

    Calls over a limit and lines that are not strict JSON-RPC do not reach the server. Everything else passes unchanged in both
    directions, and so do the server's stderr and exit status.

    \b
    Example, in a client's configuration:
      "command": "mcpguard",
      "args": ["run", "--server", "crm", "--", "npx", "-y", "@acme/crm-server"]
    """
    if not argv:
        raise UsageError("no command to run", "write mcpguard run -- npx -y @acme/crm-server")
    start(list(argv), **options)


def without_guard(argv: Sequence[str], options: dict[str, Any]) -> tuple[Sequence[str], dict[str, Any]]:
    """The server's own command and the options of `run`, if `argv` is `[mcpguard] run ...` as in a client's entry; else both.

    Args:
        argv: The words after the options of a command that takes the options of `run`.
        options: These options. They win over those in `argv`.
    """
    words = argv[1:] if argv and PurePath(argv[0]).stem == "mcpguard" else argv
    guarded = run_options.parse(words)
    if guarded is None:
        return argv, options
    return guarded.pop("argv"), guarded | {key: value for key, value in options.items() if value}


def words(options: dict[str, Any]) -> list[str]:
    """Options of `run` as words. `--quiet` is left out: it hides why a server ends."""
    found: list[str] = []
    for option in OPTIONS:
        value = options.get(option.key)
        if value and option.key != "quiet":
            found += [f"--{option.key}"] if option.is_flag else [option.name, value]
    return found


_TITLES: Final = ("Claude Code", "Codex", "Copilot CLI", "Cursor", "Gemini CLI")

_HOOK_PARAMS: Final = [click_option(option) for option in HOOK_OPTIONS]


@click.group(
    "hook",
    CommandGroup,
    parts={
        name: (f"run:{name.replace('-', '_')}", f"The hook of {title}.")
        for name, title in zip(HOOK_CLIENTS, _TITLES, strict=True)
    },
)
def hook() -> None:
    """Commands for the hooks of clients. A client runs one before each call of a tool.

    With --enforce the hook decides the call, also if it is a call of a built-in tool or of a server that mcpguard does not
    guard: by the same policy and on the same counters as mcpguard run. Without --enforce it only tells which agent makes a
    call. `mcpguard install CLIENT --enforce` or `--hook` puts it into the client's file.

    \b
    Examples:
      mcpguard install claude-code --enforce
      mcpguard hook claude-code --help
    """


@click.command("claude-code", Command, params=_HOOK_PARAMS)
def claude_code(**options: Any) -> None:
    """The hook of Claude Code, which runs it before each call (PreToolUse).

    It notes which agent makes a call: a call of the Explore subagent then has the agent "Claude Code::subagent::Explore".
    With --enforce it decides the call, and prints an answer if the call is denied; else it prints nothing. It takes at most
    a second, and its exit status is 0. Give it the same options or variables as your server entries. Other programs that
    run Claude Code's hooks, such as VS Code and Cursor, are not affected.

    Put this into .claude/settings.json, or into ~/.claude/settings.json for all projects. With --enforce the matcher is "*".

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
    run_hook(name="claude-code", **options)


@click.command("codex", Command, params=_HOOK_PARAMS)
def codex(**options: Any) -> None:
    """The hook of Codex, which runs it before each call (PreToolUse).

    It notes which agent makes a call: a call of the explorer subagent then has the agent "Codex::subagent::explorer".
    Without the hook it has the agent "Codex::subagent::default", because Codex sends the tier but not the name. With
    --enforce it decides the call, and prints an answer if the call is denied; else it prints nothing. It takes at most a
    second, and its exit status is 0. Give it the same options or variables as your server entries.

    Put this into ~/.codex/hooks.json. With --enforce the matcher is "*". Then start Codex, enter /hooks, and trust the hook:
    Codex runs no hook that you have not trusted.

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
    run_hook(name="codex", **options)


@click.command("copilot", Command, params=_HOOK_PARAMS)
def copilot(**options: Any) -> None:
    """The hook of GitHub Copilot CLI, which runs it before each call of an MCP tool (preMcpToolCall).

    It notes which agent makes a call: a call of the general-purpose subagent then has the agent
    "GitHub Copilot CLI::subagent::general-purpose". For a subagent's call it prints the call's _meta with the call's id added
    (mcpguard/toolCallId). With --enforce Copilot CLI also runs it before each call of any tool (preToolUse); it then
    decides the call, unless a guarded server does, and prints an answer if the call is denied. It takes at most a second,
    and its exit status is 0. Give it the same options or variables as your server entries.

    Put this into ~/.copilot/hooks/mcpguard.json. With --enforce put the same hook below "preToolUse", too.

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
    run_hook(name="copilot", **options)


@click.command("cursor", Command, params=_HOOK_PARAMS)
def cursor(**options: Any) -> None:
    """The hook of Cursor, by Cursor's documentation: it has not been run there. It needs --enforce.

    It decides calls of built-in tools (preToolUse) and of MCP servers that are not guarded (beforeMCPExecution), and prints an
    answer if a call is denied. It counts calls of built-in tools that have failed (postToolUseFailure). It takes at most a
    second, and its exit status is 0. Give it the same options or variables as your server entries.

    Put this into ~/.cursor/hooks.json.

    \b
      {
        "version": 1,
        "hooks": {
          "preToolUse": [{ "command": "mcpguard hook cursor --enforce" }],
          "beforeMCPExecution": [{ "command": "mcpguard hook cursor --enforce" }],
          "postToolUseFailure": [{ "command": "mcpguard hook cursor --enforce" }]
        }
      }
    """
    run_hook(name="cursor", **options)


@click.command("gemini", Command, params=_HOOK_PARAMS)
def gemini(**options: Any) -> None:
    """The hook of Gemini CLI, which runs it before each call (BeforeTool). It needs --enforce.

    It decides calls of built-in tools and of MCP servers that are not guarded, and prints an answer if a call is denied. It
    takes at most a second, and its exit status is 0. Give it the same options or variables as your server entries.

    Put this into ~/.gemini/settings.json. Gemini CLI's time limits are in milliseconds.

    \b
      {
        "hooks": {
          "BeforeTool": [
            {
              "matcher": "*",
              "hooks": [{
                "type": "command",
                "command": "mcpguard hook gemini --enforce",
                "timeout": 5000
              }]
            }
          ]
        }
      }
    """
    run_hook(name="gemini", **options)


@click.command("demo", Command)
@click.option("--keep", is_flag=True, help="Keep the demo's temporary folder, and print where it is.")
def demo(keep: bool) -> int:
    """See the limits hold while an agent loops.

    Starts a small CRM server behind mcpguard for three users. The agent of one user calls it 3,000 times. The demo prints how
    many calls reached the server, what a denied client receives, and the newest denials in the audit log. It takes some
    seconds, works in a temporary folder, and does not touch your files.

    Example: mcpguard demo
    """
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # an import may swallow a `KeyboardInterrupt`
    # mcp and rich take longer to import than most commands take to run
    from mcpguard.demo.story import LOOP_CALLS, run_demo

    signal.signal(signal.SIGINT, before)
    return run_demo(keep=keep, loop_calls=LOOP_CALLS)
