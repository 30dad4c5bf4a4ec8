"""Find the files of each certificate in a directory, in the layouts of common ACME clients.

=====================  ==================================================
certbot                ``live/NAME/fullchain.pem``, ``privkey.pem``
NixOS security.acme    ``NAME/fullchain.pem``, ``key.pem``, ``full.pem``
Kubernetes             ``tls.crt``, ``tls.key``
lego                   ``NAME.crt``, ``NAME.key``, ``NAME.issuer.crt``
combined               ``NAME.pem``, with the key inside or in ``NAME.key``
=====================  ==================================================
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

_PAIRS = (("fullchain.pem", "privkey.pem"), ("fullchain.pem", "key.pem"), ("tls.crt", "tls.key"))
"""A directory with one of these pairs has one certificate, possibly also in other forms."""
_WHOLE = "full.pem"
_ENDINGS = (".crt", ".pem", ".cer")
_ISSUER = ".issuer.crt"


class FilePair(NamedTuple):
    """The file with a certificate and its chain, and the one with the key; None if it is inside.

    Names are relative to one directory.
    """

    chain: str
    key: str | None = None


def pairs_in(names: Collection[str]) -> tuple[FilePair, ...]:
    """Return the certificates of a directory with the files `names`, sorted, without hidden files.

    The key file of a certificate may be missing: it may not have been written yet.
    """
    # A directory may have thousands of files.
    names = frozenset(names)
    for chain, key in _PAIRS:
        if chain in names and key in names:
            return (FilePair(chain, key),)
    if _WHOLE in names:
        return (FilePair(_WHOLE),)
    for chain, key in _PAIRS:
        if chain in names or key in names:
            return (FilePair(chain, key),)
    return tuple(
        FilePair(name, key_beside(name, names))
        for name in sorted(names)
        if name.endswith(_ENDINGS) and not name.endswith(_ISSUER) and not name.startswith(".")
    )


def key_beside(name: str, names: Collection[str]) -> str | None:
    """Return the key file of the certificate `name` among `names`; None if it may be inside."""
    known = [key for chain, key in _PAIRS if chain == name]
    stem = name.rpartition(".")[0] or name
    candidates = (*known, f"{stem}.key", f"{name}.key")
    if found := next((each for each in candidates if each in names), None):
        return found
    # lego and Kubernetes never store the key in this file.
    return f"{stem}.key" if name.endswith(".crt") and f"{stem}{_ISSUER}" in names else None
