"""Checks an installation: settings, policy, store, identity, keys, PATH, and a server behind mcpguard."""
