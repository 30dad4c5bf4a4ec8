"""What the operator declares: settings, services and raw fragments, read from files."""
