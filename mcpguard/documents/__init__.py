"""JSONC, TOML and YAML as values with their spans in the text, and edits that change nothing else."""
