"""The lines of a service's section for logins, cookies, redirects and rewritten paths.

Values of these fields are literal text; where HAProxy expects a log format (manual 8.2.6), each
`%` is doubled.
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
"""Applications may interpret such a path as a different one."""
_NAME_LENGTH = 8


def login_lines(spec: ServiceSpec) -> Iterator[str]:
    """Return the lines that admit only users of the userlist, and hide passwords from the pods."""
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
    """Return the userlist of a service, and the digests of the files that contain it."""
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
    """Return the lines that redirect requests and rewrite paths."""
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
        # A path rewritten by one rule must not match the next one.
        yield "http-request set-var(txn.fc_from) path"
        for rewrite in spec.rewrite:
            yield from _rewrite_lines(rewrite)


def cookie_lines(spec: ServiceSpec, files: SiteFiles) -> Iterator[str]:
    """Return the lines that keep a client on its pod.

    The cookie contains a digest of the pod's address, not the address itself.
    """
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
    """Return the line for the page that clients receive while no pod accepts requests."""
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
        # Browsers resolve `//host` and `/\\host` to another host.
        start = quote(f"{redirect.path.text}/")
        odd = "{ path -m sub // \\\\ }"
        yield f"http-request deny deny_status 400 if {{ path -m beg {start} }} {odd}"
    for target, condition in _replaced(redirect.path, redirect.to, "path"):
        # HAProxy must read the log format as one word; it contains no blanks.
        location = f"{target}%[var(txn.fc_query)]"
        yield f"http-request redirect code {redirect.code} location {location} if {condition}"


def _rewrite_lines(rewrite: Rewrite) -> Iterator[str]:
    for target, condition in _replaced(rewrite.path, rewrite.to, "var(txn.fc_from)"):
        yield f"http-request set-path {target} if {condition}"


def _replaced(path: Path, to: str, fetch: str) -> Iterator[tuple[str, str]]:
    """Return the log formats that replace `path` by `to`, each with its condition.

    A prefix is removed by its length, not by a pattern, because it may contain any character.
    """
    whole = quote(to.replace("%", "%%"))
    if path.text:
        yield whole, f"{{ {fetch} -m str {quote(path.text)} }}"
    if not path.is_exact:
        start = quote(to.removesuffix("/").replace("%", "%%"))
        rest = f"%[{fetch},bytes({len(path.text)})]"
        # `quote` returns `""` for an empty text, which can still begin a word.
        yield f"{start}{rest}", f"{{ {fetch} -m beg {quote(path.text + '/')} }}"


_SECRET = re.compile(rb"^(?:userlist \S+\.users|[ \t]*dynamic-cookie-key .*)$", re.MULTILINE)


def has_secrets(data: bytes) -> bool:
    """Return whether the configuration `data` contains password hashes or cookie keys."""
    return _SECRET.search(data) is not None
