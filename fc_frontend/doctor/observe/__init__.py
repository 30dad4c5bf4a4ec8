"""Looks at what is there, each within a time limit, and changes nothing."""
