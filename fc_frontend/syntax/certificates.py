"""TLS options of a frontend's `bind` lines, and the paths of its certificates.

HAProxy loads copies from fc-frontend's own directory, through a crt-list for each frontend.  Both
change at runtime, so neither is part of the text of haproxy.cfg.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

CERTIFICATES_DIRECTORY = "fc-frontend-certificates"
"""In the state directory, unreadable for other users."""
STAND_IN = "stand-in.pem"
"""The first entry of each list: HAProxy warns of an empty list.  No client selects it by name."""
_ENDING = ".list"
_LIST = re.compile(rf"/[^\s,()]*/{CERTIFICATES_DIRECTORY}/[^\s,()/]+\.list")
_TLS_12 = (
    "ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-RSA-AES128-GCM-SHA256:ECDHE-ECDSA-AES256-GCM-SHA384:"
    "ECDHE-RSA-AES256-GCM-SHA384:ECDHE-ECDSA-CHACHA20-POLY1305:ECDHE-RSA-CHACHA20-POLY1305"
)
_TLS_13 = "TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256"
_PROFILES = {
    "modern": f"ssl-min-ver TLSv1.3 no-tls-tickets curves X25519:prime256v1:secp384r1 "
    f"ciphersuites {_TLS_13}",
    "intermediate": f"ssl-min-ver TLSv1.2 no-tls-tickets curves X25519:prime256v1:secp384r1 "
    f"ciphers {_TLS_12} ciphersuites {_TLS_13}",
}
"""Mozilla's profiles (wiki.mozilla.org/Security/Server_Side_TLS, 5.7), without finite-field DHE,
for which HAProxy has no parameters unless they are configured."""
PROFILES = tuple(_PROFILES)


def directory_in(state_directory: str) -> str:
    """Return the directory with lists and certificates."""
    return f"{state_directory}/{CERTIFICATES_DIRECTORY}"


def list_path(state_directory: str, frontend: str) -> str:
    """Return the path of a frontend's crt-list."""
    return f"{directory_in(state_directory)}/{frontend}{_ENDING}"


def is_own_list(path: str) -> bool:
    """Return whether `path` is one of fc-frontend's own lists."""
    return _LIST.fullmatch(path) is not None


def own_lists(text: str) -> Iterator[str]:
    """Return the own lists that the configuration `text` names."""
    if CERTIFICATES_DIRECTORY in text:
        yield from dict.fromkeys(_LIST.findall(text))


def with_certificate(text: str, path: str) -> str:
    """Return `text` with one certificate in place of each list."""
    if CERTIFICATES_DIRECTORY not in text:
        return text
    return re.sub(rf"\bcrt-list {_LIST.pattern}", f"crt {path}", text)


def bind_words(
    crt_list: str,
    *,
    has_default: bool,
    client_ca: str | None = None,
    is_client_optional: bool = False,
    profile: str = "intermediate",
) -> str:
    """Return the words of `bind` that terminate TLS (manual 5.1).

    Without a default, handshakes for names that no certificate contains fail.
    """
    words = ["ssl", "crt-list", crt_list]
    if not has_default:
        words.append("strict-sni")
    # HAProxy before 2.8 offers no protocol by default.
    words += ["alpn", "h2,http/1.1", _PROFILES[profile]]
    if client_ca is not None:
        words += ["ca-file", client_ca, "verify", "optional" if is_client_optional else "required"]
    return " ".join(words)
