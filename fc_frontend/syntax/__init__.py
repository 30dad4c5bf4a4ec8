"""haproxy.cfg as HAProxy reads it: words, section keywords, binds.  Pure."""
