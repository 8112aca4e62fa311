"""Lets calls go on while a store cannot be used: a circuit breaker, local counting, and a log of the outage on disk."""
