"""Follow paths, and find out who may change their targets."""
