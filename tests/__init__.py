"""Tests: mirrors of the packages, and suites that cut across them."""
