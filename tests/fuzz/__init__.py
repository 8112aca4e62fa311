"""Hostile traffic: what must not get past the guard, and what must."""
