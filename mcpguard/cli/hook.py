"""`mcpguard hook` for click, which prints its help and reports errors of its command line."""

from typing import Any, Final

import click

from mcpguard.cli.commands import Command, CommandGroup
from mcpguard.cli.run import click_option
from mcpguard.hook.run import run
from mcpguard.run_options import HOOK_CLIENTS, HOOK_OPTIONS

_TITLES: Final = ("Claude Code", "Codex", "Copilot CLI", "Cursor", "Gemini CLI")

_PARAMS: Final = [click_option(option) for option in HOOK_OPTIONS]


@click.group(
    "hook",
    CommandGroup,
    parts={
        name: (f"hook:{name.replace('-', '_')}", f"The hook of {title}.")
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


@click.command("claude-code", Command, params=_PARAMS)
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
    run(name="claude-code", **options)


@click.command("codex", Command, params=_PARAMS)
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
    run(name="codex", **options)


@click.command("copilot", Command, params=_PARAMS)
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
    run(name="copilot", **options)


@click.command("cursor", Command, params=_PARAMS)
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
    run(name="cursor", **options)


@click.command("gemini", Command, params=_PARAMS)
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
    run(name="gemini", **options)
