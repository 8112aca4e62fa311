"""Tests of what one kind of store promises beyond the contract of all."""
