"""Stores counters and audit log on a Redis or Valkey server, for the wrappers of many machines."""
