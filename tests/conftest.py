"""Settings for every test."""

from hypothesis import settings

settings.register_profile("mcpguard", deadline=None, derandomize=True, database=None, print_blob=True)
settings.load_profile("mcpguard")
