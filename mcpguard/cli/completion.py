"""`mcpguard completion`: prints a script by which a shell completes command lines."""

import click

from mcpguard.cli import _completion
from mcpguard.cli._command import Command


@click.command("completion", Command)
@click.argument("shell", type=click.Choice(_completion.SHELLS), metavar="bash|zsh|fish|powershell")
@click.pass_context
def command(ctx: click.Context, shell: str) -> None:
    """Print the script by which your shell completes commands, options, and the users, agents, tools and servers seen.

    Let the shell load it at its start:

    \b
      bash        echo 'eval "$(mcpguard completion bash)"' >> ~/.bashrc
      zsh         echo 'eval "$(mcpguard completion zsh)"' >> ~/.zshrc
      fish        mcpguard completion fish > ~/.config/fish/completions/mcpguard.fish
      powershell  mcpguard completion powershell >> $PROFILE

    Needs bash 4.4 or later. In .zshrc, put the line after compinit. Names come from the policy and from the newest rows of
    the audit log. They are read for a second at most, and nothing is changed.
    """
    root = ctx.find_root().command
    click.echo(_completion.script(root, shell), nl=False)
