"""Tests of each kind of store, beyond the contract that all kinds share."""
