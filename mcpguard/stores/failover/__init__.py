"""A store that may fail: a circuit breaker, local counting, and a write-behind buffer with its spill file."""
