"""Benchmarks: `python -m tests.bench [NAME…] [--json] [--quick]`; `--help` tells the rest.

They print ratios to, or figures beside, a named baseline that is run with them; nothing here is a
test.  `reloads` in full takes half an hour, `faults` 17 minutes, `scaling` five.  A HAProxy that
somebody else left on the same addresses would get a part of the requests: where others work on the
machine, run them in a network namespace,
`unshare --net sh -c 'ip link set lo up; python -m tests.bench'`.
"""
