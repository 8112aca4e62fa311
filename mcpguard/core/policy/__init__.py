"""The policy: rules, how they are parsed, which of them apply to a call, and how they are described."""
