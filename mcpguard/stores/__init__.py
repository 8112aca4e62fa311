"""Stores counters and audit log: in SQLite, or on a Redis or Valkey server, with an outage store around either."""
