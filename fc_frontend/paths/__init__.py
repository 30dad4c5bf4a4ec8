"""Follow paths, and see who may change what they lead to."""
