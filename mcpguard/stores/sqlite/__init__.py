"""Stores counters and audit log in files of one machine."""
