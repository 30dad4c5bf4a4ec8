"""Render a plan as haproxy.cfg, and map its lines to the declared units.  Pure."""
