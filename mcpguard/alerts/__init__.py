"""Alerts: messages about denials, warnings and outages, off every call's path. Loaded only if `[[notify]]` is configured."""
