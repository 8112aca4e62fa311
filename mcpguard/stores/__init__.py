"""Where counters and audit are kept: memory, one SQLite file."""
