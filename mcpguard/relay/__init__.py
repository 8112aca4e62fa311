"""The only place that moves bytes: the server's process, the pumps, and the life of the whole."""
