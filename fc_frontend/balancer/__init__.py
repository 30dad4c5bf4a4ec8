"""Services of type LoadBalancer: assign addresses, and declare what HAProxy serves there.  Pure."""
