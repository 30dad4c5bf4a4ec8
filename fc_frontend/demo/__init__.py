"""A cluster on loopback: DNS and pods, for `fc-frontend demo` and for the tests.

It uses real sockets and real protocols, so that HAProxy itself can be tested. Nothing in this
package may listen on an address that other hosts can reach.
"""

from fc_frontend.observe.listening import handed_over, stop_listening

__all__ = ["handed_over", "stop_listening"]
