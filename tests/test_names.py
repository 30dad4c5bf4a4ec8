"""The names that HAProxy text defines and uses."""

from __future__ import annotations

import pytest

from fc_frontend.model.units import Resource
from fc_frontend.syntax.names import defined_names, used_names

EDGE = """
defaults edge-defaults from common
    mode http
userlist staff
    user anna password x
frontend "edge" from edge-defaults
    bind :80
    acl docs hdr(host) -i docs.example.org
    use_backend blog if docs
    use_backend %[req.hdr(host),lower]
    http-request deny unless { http_auth(staff) }
    http-request deny unless { http_auth(admins) }
    http-request track-sc0 src table limits
    http-request deny if { sc_http_req_rate(0,limits2) gt 10 }
    use_backend spare if { nbsrv(blog2) lt 1 }
    # use_backend comment
    log ring@buffer local0
    default_backend 'shop'
backend own
    stick-table type ip size 1k expire 1m store gpc0 peers friends
    server pod1 pod.example:80 check resolvers cluster track shop2/pod1
"""


def names(*pairs: str) -> set[Resource]:
    return {Resource(*pair.split(" ")) for pair in pairs}


def test_names_that_sections_define() -> None:
    assert defined_names(EDGE) == names(
        "defaults edge-defaults",
        "userlist staff",
        "frontend edge",
        "backend own",
        "table own",
    )
    assert defined_names("listen web\n") == names("frontend web", "backend web")


def test_names_that_lines_use() -> None:
    assert used_names(EDGE) == names(
        "defaults common",
        "backend blog",
        "userlist admins",
        "table limits",
        "table limits2",
        "backend blog2",
        "backend spare",
        "ring buffer",
        "backend shop",
        "peers friends",
        "resolvers cluster",
        "backend shop2",
    )


@pytest.mark.parametrize(
    "line",
    [
        "# use_backend blog",
        "http-request set-var(txn.use_backend) str(a)",
        "description 'the blog'",
    ],
)
def test_lines_that_use_no_name(line: str) -> None:
    assert used_names(f"frontend a\n    {line}\n") == frozenset()
