"""The configuration files of clients: where each client keeps its servers, and how its file is edited in place."""
