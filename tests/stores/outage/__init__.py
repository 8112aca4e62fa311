"""Outages of a store."""
