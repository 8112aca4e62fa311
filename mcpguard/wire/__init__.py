"""Bytes to messages, strictly; and outcomes off the answers."""
