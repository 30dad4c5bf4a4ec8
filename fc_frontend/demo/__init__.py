"""A cluster on loopback: DNS and pods, for `fc-frontend demo` and for the tests.

Real sockets and real protocols stand here so that HAProxy itself can be the judge. Nothing in
this package may listen on an address that other hosts can reach.
"""
