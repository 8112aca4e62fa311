"""Tests of the contract that all kinds of stores share."""
