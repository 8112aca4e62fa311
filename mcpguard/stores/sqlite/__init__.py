"""Counters and audit in files of one machine."""
