"""The operator's declarations: settings, services, frontends and raw fragments, from files."""
