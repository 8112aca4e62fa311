"""`mcpguard hook` for click, which prints its help and reports errors of its command line."""

from typing import Any

import click

from mcpguard.cli.base import Command, Group
from mcpguard.cli.run import click_option
from mcpguard.hook.run import run
from mcpguard.run_options import HOOK_OPTIONS


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


@click.command("claude-code", Command, params=[click_option(option) for option in HOOK_OPTIONS])
def claude_code(**options: Any) -> None:
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
    run(name="claude-code", **options)


@click.command("codex", Command, params=[click_option(option) for option in HOOK_OPTIONS])
def codex(**options: Any) -> None:
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
    run(name="codex", **options)


@click.command("copilot", Command, params=[click_option(option) for option in HOOK_OPTIONS])
def copilot(**options: Any) -> None:
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
    run(name="copilot", **options)
