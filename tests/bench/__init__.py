"""Benchmarks: `python -m tests.bench [NAME…] [--json] [--quick]`; `--help` shows all options.

They print ratios to, or figures beside, a named baseline that runs with them; nothing here is a
test.  `reloads` in full takes half an hour, `faults` 17 minutes, `scaling` five.  A HAProxy that
another process left on the same addresses would receive a part of the requests: on a shared
machine, run them in a network namespace,
`unshare --net sh -c 'ip link set lo up; python -m tests.bench'`.
"""
