"""Reads the store and the audit log: usage, statistics, explanations, export. Never on a call's path."""
