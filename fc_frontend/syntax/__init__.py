"""Parse haproxy.cfg as HAProxy does: words, lines, sections, binds.  Pure."""
