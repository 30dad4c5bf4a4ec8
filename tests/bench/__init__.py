"""Benchmarks: `python -m tests.bench [NAME…] [--json] [--quick]`.

They print ratios to a named baseline that is run beside them; nothing here is a test.
"""
