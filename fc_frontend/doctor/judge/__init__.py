"""Turn facts into findings.  Pure, so that each check can be tested without the actual fault."""
