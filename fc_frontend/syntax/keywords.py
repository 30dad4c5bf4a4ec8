"""The words with which HAProxy begins a section (manual, section 1.5 and chapters 3 to 12)."""

SECTIONS = frozenset(
    """
    global defaults listen frontend backend resolvers peers mailers userlist program http-errors
    ring cache log-forward log-profile crt-store crt-list traces acme fcgi-app healthcheck
    """.split()
)
