"""The daemon: the reconciler, and the loops and signals around it."""
