"""Helpers shared by the tests of `doctor`."""

from __future__ import annotations

import json
from ipaddress import ip_address, ip_network

from fc_frontend.doctor.findings import Finding
from fc_frontend.plan.model import (
    Cluster,
    Nameserver,
)
from tests.support.frontend import Frontend

CLUSTER = Cluster(
    nameservers=(Nameserver(ip_address("10.0.0.254")),),
    service_networks=(ip_network("10.0.0.0/24"),),
    pod_networks=(ip_network("10.1.0.0/16"),),
)
SECRET = "the-token-that-nobody-may-see"


def result_of(findings: tuple[Finding, ...], check: str) -> str:
    """Return the result of the only check whose name contains `check`."""
    found = [finding for finding in findings if check in finding.check]
    assert len(found) == 1, findings
    return found[0].result.value


def said(findings: tuple[Finding, ...]) -> str:
    return "\n".join(f"{f.result} {f.check}: {f.message} → {f.remedy}" for f in findings)


def doctor(frontend: Frontend, *arguments: str) -> tuple[int, dict[str, dict[str, str]]]:
    """Return the exit code and the findings by check; several of the same check are joined."""
    done = frontend.run("doctor", "--format", "json", *arguments, check=False)
    assert not done.stderr, done.stderr
    found: dict[str, dict[str, str]] = {}
    for finding in json.loads(done.stdout)["findings"]:
        seen = found.setdefault(finding["check"], finding)
        if seen is not finding:
            seen["message"] += f"; {finding['message']}"
            seen["result"] += f" {finding['result']}"
    return done.returncode, found
