"""From a plan to haproxy.cfg's text and the map from its lines to what was declared.  Pure."""
