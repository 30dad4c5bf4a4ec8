"""Helpers that several test modules and benchmarks share."""
