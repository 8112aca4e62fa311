"""Who is calling: user, agent, server; tokens and keys."""
