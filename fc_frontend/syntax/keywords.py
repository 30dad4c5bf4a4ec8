"""Words that HAProxy's configuration parser handles itself, in any section."""

SECTIONS = frozenset(
    """
    global defaults listen frontend backend resolvers peers mailers userlist program http-errors
    ring cache log-forward fcgi-app namespace_list
    crt-store log-profile traces acme healthcheck
    """.split()
)
"""All section keywords: HAProxy 2.6 and 2.8 in the first two lines, 3.x in the third.

Source: `REGISTER_CONFIG_SECTION` in HAProxy's source.  `namespace_list` is not in the manual.
"""

PREFIXES = ("no", "default")
"""Words that may precede a keyword (manual 4.1, `no option`)."""

PREPROCESSOR = frozenset(".if .elif .else .endif .notice .warning .alert .diag".split())
"""Manual 2.4.  HAProxy refuses any other first word that begins with a dot."""
