"""Answers for operators: the current status, the cause of a failure, the effect of a change."""
