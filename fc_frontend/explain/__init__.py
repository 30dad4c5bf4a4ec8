"""What operators ask: how is it, where does it break, what would change."""
