"""The lines of a service's section for logins, cookies, redirects and rewritten paths.

Values of these fields are literal text; what is a log format for HAProxy (manual 8.2.6) has its
`%` doubled.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator

from fc_frontend.plan.model import ServiceSpec
from fc_frontend.plan.sites import BasicAuth, Redirect, Rewrite, SiteFiles
from fc_frontend.render.file_marks import FILE_MARK
from fc_frontend.syntax.routes import AMBIGUOUS_PATH, Path
from fc_frontend.syntax.words import quote

DENY_AMBIGUOUS = f"http-request deny deny_status 400 if {{ path -m reg {AMBIGUOUS_PATH} }}"
"""Applications may read such a path as another one."""
_NAME_LENGTH = 8


def login_lines(spec: ServiceSpec) -> Iterator[str]:
    """Let only users of the userlist in, and keep their passwords from the pods."""
    if (auth := spec.basic_auth) is None:
        return
    userlist = _userlist(spec.name)
    fetch = f"http_auth({userlist})"
    if auth.allow_groups:
        groups = " ".join(map(quote, auth.allow_groups))
        fetch = f"http_auth_group({userlist}) {groups}"
    yield f"http-request auth realm {quote(auth.realm)} unless {{ {fetch} }}"
    yield "http-request del-header Authorization"


def userlist_lines(spec: ServiceSpec, files: SiteFiles) -> Iterator[str]:
    """The userlist of a service, and the digests of the files that it was read from."""
    if (auth := spec.basic_auth) is None:
        return
    yield f"userlist {_userlist(spec.name)}"
    for group in _groups(auth, files):
        yield f"    group {quote(group)}"
    for login in files.logins:
        groups = f" groups {quote(','.join(login.groups))}" if login.groups else ""
        yield f"    user {quote(login.user)} password {quote(login.hash)}{groups}"
    for path, digest in files.digests:
        yield f"{FILE_MARK}{digest} {path}"


def path_lines(spec: ServiceSpec) -> Iterator[str]:
    """Redirect requests, and rewrite the paths of others."""
    if spec.rewrite:
        # Otherwise `/api/../x` would lead out of the prefix.
        yield DENY_AMBIGUOUS
    if spec.redirects:
        yield "http-request set-var(txn.fc_query) query"
        yield (
            "http-request set-var(txn.fc_query) str(?),concat(,txn.fc_query) if { query -m found }"
        )
        for redirect in spec.redirects:
            yield from _redirect_lines(redirect)
    if spec.rewrite:
        # What one rule has rewritten is not for the next one.
        yield "http-request set-var(txn.fc_from) path"
        for rewrite in spec.rewrite:
            yield from _rewrite_lines(rewrite)


def cookie_lines(spec: ServiceSpec, files: SiteFiles) -> Iterator[str]:
    """Keep a client on its pod.  The cookie has a digest of the pod's address, not the address."""
    if (sticky := spec.sticky) is None:
        return
    name = sticky.cookie or "FC" + hashlib.sha256(spec.name.encode()).hexdigest()[:_NAME_LENGTH]
    attributes = f'attr "SameSite={sticky.same_site}"'
    yield f"cookie {name} insert indirect nocache httponly {attributes} dynamic"
    yield f"dynamic-cookie-key {quote(files.cookie_key or spec.name)}"
    yield (
        f"http-after-response replace-header Set-Cookie '^({name}=.*)' "
        "'\\1; Secure' if { ssl_fc }"
    )


def page_lines(spec: ServiceSpec) -> Iterator[str]:
    """The page that clients get while no pod takes requests."""
    if spec.unavailable_page is not None:
        yield (
            'http-error status 503 content-type "text/html; charset=utf-8" '
            f"file {quote(spec.unavailable_page)} hdr Cache-Control no-store"
        )


def _userlist(service: str) -> str:
    return f"{service}.users"


def _groups(auth: BasicAuth, files: SiteFiles) -> list[str]:
    named = {group for login in files.logins for group in login.groups}
    return sorted(named.union(auth.allow_groups))


def _redirect_lines(redirect: Redirect) -> Iterator[str]:
    if redirect.to == "/" and not redirect.path.is_exact:
        # For browsers, `//host` and `/\\host` are on another host.
        start = quote(f"{redirect.path.text}/")
        odd = "{ path -m sub // \\\\ }"
        yield f"http-request deny deny_status 400 if {{ path -m beg {start} }} {odd}"
    for target, condition in _replaced(redirect.path, redirect.to, "path"):
        # A log format may not be split into words by its blanks; there are none.
        location = f"{target}%[var(txn.fc_query)]"
        yield f"http-request redirect code {redirect.code} location {location} if {condition}"


def _rewrite_lines(rewrite: Rewrite) -> Iterator[str]:
    for target, condition in _replaced(rewrite.path, rewrite.to, "var(txn.fc_from)"):
        yield f"http-request set-path {target} if {condition}"


def _replaced(path: Path, to: str, fetch: str) -> Iterator[tuple[str, str]]:
    """Log formats of what `to` makes of `path`, each with its condition.

    A prefix is cut off by its length, not by a pattern: it may have any letter.
    """
    whole = quote(to.replace("%", "%%"))
    if path.text:
        yield whole, f"{{ {fetch} -m str {quote(path.text)} }}"
    if not path.is_exact:
        start = quote(to.removesuffix("/").replace("%", "%%"))
        rest = f"%[{fetch},bytes({len(path.text)})]"
        # `quote` gives `""` for an empty text, which begins a word all the same.
        yield f"{start}{rest}", f"{{ {fetch} -m beg {quote(path.text + '/')} }}"


_SECRET = re.compile(rb"^(?:userlist \S+\.users|[ \t]*dynamic-cookie-key .*)$", re.MULTILINE)


def has_secrets(data: bytes) -> bool:
    """True if these lines put hashes of passwords, or keys, into a configuration."""
    return _SECRET.search(data) is not None
