"""The sliding-window log, what a call is counted on, and waiting. Pure functions."""
