"""The program as a client meets it: real processes, pipes, signals and files."""
