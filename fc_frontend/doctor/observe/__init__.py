"""Collect facts, each with a timeout, without changing anything."""
