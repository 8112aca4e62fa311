"""What real clients gave their hooks, and the calls that they then sent.

The clients ran in an empty home against a scripted model on the loopback interface, with mcpguard before an MCP server. In the
files only the paths are changed.

- `codex-0.171.0.json`: one call of the main agent, and one of a subagent: the hook's input, and the call's `params`.
- `copilot-1.0.102.json`: the same for Copilot CLI. The hook had printed `metaToUse` with the call's id.
- `claude-code-hooks-in-other-programs.json`: what programs other than Claude Code give the hooks of Claude Code's settings, by
  program.
"""

import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def recorded(name: str) -> Any:
    """The content of one of the files."""
    return json.loads((HERE / f"{name}.json").read_text())


CODEX = recorded("codex-0.171.0")
COPILOT = recorded("copilot-1.0.102")
ELSEWHERE = [
    (program, told) for program, all_told in recorded("claude-code-hooks-in-other-programs").items() for told in all_told
]
