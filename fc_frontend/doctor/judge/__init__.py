"""From facts to findings: pure, so that each judgement can be tested without the fault itself."""
