"""`mcpguard policy`: shows, checks, explains and edits limits."""

import click

from mcpguard.cli.commands import CommandGroup


@click.group(
    "policy",
    CommandGroup,
    parts={
        "check": ("policy.file:check", "Check a policy file."),
        "edit": ("policy.file:edit", "Open the policy file in your editor."),
        "explain": ("policy.explain:explain", "Show which rules apply to a call, and what is left."),
        "init": ("policy.file:init", "Write the starter policy to a file."),
        "mode": ("policy.set:mode", "Only report denials, or deny."),
        "path": ("policy.file:path", "Print the path of the policy file."),
        "schema": ("policy.file:schema", "Print the JSON Schema of the policy, for editors."),
        "set": ("policy.set:set_", "Set a limit, a cap on calls in flight, or a cost."),
        "show": ("policy.show:show", "Show each rule, with a sentence that explains it."),
        "suggest": ("policy.suggest:suggest", "Suggest limits from the audit log, or for a server's tools."),
        "unset": ("policy.set:unset", "Remove a rule, a part of a rule, or a cost."),
    },
)
def policy() -> None:
    """Show, check, explain and edit the policy, which limits how often tools may be called, and by whom.

    Running servers obey an edit from their next call on. A file over 16 KiB (about 200 rules) is parsed in the background, so
    an edit of it applies shortly after that call.

    \b
    Examples:
      mcpguard policy show
      mcpguard policy set --user '*' --tool search_customers 20/1m 100/1h
    """
