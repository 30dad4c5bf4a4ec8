"""Services of type LoadBalancer: which address each gets, and what HAProxy serves there.  Pure."""
