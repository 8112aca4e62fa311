"""Counters and audit on a Redis or Valkey server, shared by every wrapper of every machine that names it."""
