"""Connect to the binds of `api_access` as a client does, without credentials."""

from __future__ import annotations

import contextlib
import http.client
import ssl

from fc_frontend.certificates.pem import subject_names
from fc_frontend.doctor.judge.api_access import ApiAccessFacts
from fc_frontend.plan.addresses import is_within
from fc_frontend.plan.model import ApiAccessSettings, Bind
from fc_frontend.text import one_line


def observe_api_access(access: ApiAccessSettings, bind: Bind, timeout: float) -> ApiAccessFacts:
    """Request `/readyz` through `bind`, with `timeout` seconds for each step."""
    address, networks = bind.local_host, access.allow
    status, said, names = None, "", None
    # Clients verify the server.  Here it only matters whether it answers.
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    client = http.client.HTTPSConnection(address, bind.port, timeout=timeout, context=context)
    try:
        with contextlib.closing(client):
            client.connect()
            assert isinstance(client.sock, ssl.SSLSocket)
            names = subject_names(client.sock.getpeercert(binary_form=True) or b"")
            client.request("GET", "/readyz", headers={"Host": "kubernetes"})
            status = client.getresponse().status
    except (OSError, http.client.HTTPException) as exc:
        said = one_line(getattr(exc, "strerror", None) or exc or type(exc).__name__)[:200]
    return ApiAccessFacts(
        bind=str(bind),
        host=bind.host if address == bind.host else None,
        status=status,
        said=said,
        names=names,
        is_allowed=networks is None or is_within(address, networks),
    )
