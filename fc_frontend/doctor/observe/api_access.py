"""Connect to the binds of `api_access` as a client does, without credentials."""

from __future__ import annotations

import http.client
import socket
import ssl
from ipaddress import ip_address

from cryptography import x509

from fc_frontend.doctor.judge.api_access import PublishedFacts
from fc_frontend.plan.addresses import is_within
from fc_frontend.plan.model import ApiAccessSettings, Bind
from fc_frontend.text import one_line

_ANY = {"*": "127.0.0.1", "::": "::1"}


def observe_published(access: ApiAccessSettings, bind: Bind, timeout: float) -> PublishedFacts:
    """What `/readyz` through `bind` gives, within `timeout` seconds for each step."""
    address = _ANY.get(bind.host, bind.host)
    host = None if bind.host in _ANY else bind.host
    networks = access.allow
    is_allowed = networks is None or is_within(address, networks)
    status, said, names = None, "", None
    # Who it is does not matter here: clients verify it.
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with (
            socket.create_connection((address, bind.port or 0), timeout) as connection,
            context.wrap_socket(connection) as tls,
        ):
            names = _names(tls.getpeercert(binary_form=True) or b"")
            tls.sendall(b"GET /readyz HTTP/1.1\r\nHost: kubernetes\r\nConnection: close\r\n\r\n")
            response = http.client.HTTPResponse(tls)
            response.begin()
            status = response.status
    except (OSError, http.client.HTTPException) as exc:
        said = one_line(getattr(exc, "strerror", None) or exc or type(exc).__name__)[:200]
    return PublishedFacts(
        bind=str(bind), host=host, status=status, said=said, names=names, is_allowed=is_allowed
    )


def _names(certificate: bytes) -> frozenset[str] | None:
    """The names and addresses in a certificate; None if it cannot be read."""
    try:
        extensions = x509.load_der_x509_certificate(certificate).extensions
        found = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return frozenset()
    except (ValueError, x509.InvalidVersion):
        return None
    addresses = found.get_values_for_type(x509.IPAddress)
    return frozenset(
        (*found.get_values_for_type(x509.DNSName), *(str(ip_address(str(a))) for a in addresses))
    )
