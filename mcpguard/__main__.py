"""`python -m mcpguard`."""

from mcpguard.cli import main

main()
