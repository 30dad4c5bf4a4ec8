"""The schema of a service's site fields: logins, cookies, redirects and rewritten paths."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from fc_frontend.config.fields import RoutePath, SafePath, Strict, error, listed, matching, short
from fc_frontend.plan.sites import BasicAuth, Redirect, Rewrite, Sticky
from fc_frontend.syntax.routes import NotARoute, Path, parse_host, parse_path

MAX_RULES = 100
"""Redirects or rewritten prefixes per service: HAProxy tries them one after the other."""
_GROUP = re.compile(r"[A-Za-z0-9._@+-]{1,64}")
_REALM = re.compile(r"[A-Za-z0-9 ._@+/:-]{1,100}")
_COOKIE = re.compile(r"[A-Za-z0-9_-]{1,64}")
_URL = re.compile(r"(https?)://([^/?#:]+)(?::([0-9]{1,5}))?(/.*)?")
_DOMAIN = Path("")

Complaints = list[tuple[str, str, str]]
"""Field, message and remedy of each conflict between fields."""


def _target(value: Any) -> str:
    """Validate a path, or an http or https URL with a host."""
    if not isinstance(value, str):
        raise error(f"{short(value)} is not a string", "put it in quotes")
    try:
        if value.startswith("/"):
            return parse_path(value, is_exact=True).text
        match = _URL.fullmatch(value)
        if match is None or int(match[3] or 1) not in range(1, 65536):
            raise error(
                f"{short(value)} is not a path or URL",
                "write /path, or https://host/path, without a query",
            )
        host = parse_host(match[2])
        if host.startswith("*"):
            raise error(f"{short(value)} has a wildcard", "name one host")
        port = f":{int(match[3])}" if match[3] else ""
        return f"{match[1]}://{host}{port}{parse_path(match[4] or '/', is_exact=True).text}"
    except NotARoute as exc:
        raise error(str(exc), exc.remedy) from None


def _prefix(value: Any) -> str:
    try:
        return parse_path(value, is_exact=True).text
    except NotARoute as exc:
        raise error(str(exc), exc.remedy) from None


def _mappings(value: Any) -> Any:
    return listed([value] if isinstance(value, dict) else value)


def _switch(value: Any) -> Any:
    return {} if value is True else None if value is False else value


class BasicAuthDeclaration(Strict):
    """`basic_auth:`, the users who may log in."""

    users: SafePath
    groups: SafePath | None = None
    allow_groups: Annotated[
        tuple[
            Annotated[str, matching(_GROUP, "a group's name", "use letters, digits and ._@+-")],
            ...,
        ],
        BeforeValidator(listed),
        Field(max_length=50),
    ] = ()
    realm: Annotated[
        str, matching(_REALM, "a usable realm", "use letters, digits, blanks and ._@+/:-")
    ] = "restricted"

    def model(self) -> BasicAuth:
        return BasicAuth(**dict(self))


class StickyDeclaration(Strict):
    """`sticky:` as a mapping; `true` means all defaults."""

    cookie: (
        Annotated[
            str, matching(_COOKIE, "a cookie's name", "use letters, digits, underscores and dashes")
        ]
        | None
    ) = None
    same_site: Literal["lax", "strict", "none"] = "lax"

    def model(self) -> Sticky:
        return Sticky(cookie=self.cookie, same_site=self.same_site.title())  # type: ignore[arg-type]


class RedirectDeclaration(Strict):
    """One of `redirects:`."""

    path: RoutePath = _DOMAIN
    to: Annotated[str, BeforeValidator(_target)]
    code: Literal[301, 302, 303, 307, 308] = 308

    def model(self) -> Redirect:
        return Redirect(self.path, self.to, self.code)


class RewriteDeclaration(Strict):
    """One of `rewrite:`."""

    path: RoutePath
    to: Annotated[str, BeforeValidator(_prefix)]

    def model(self) -> Rewrite:
        return Rewrite(self.path, self.to)


BasicAuthField = BasicAuthDeclaration | None
StickyField = Annotated[StickyDeclaration | None, BeforeValidator(_switch)]
RedirectsField = Annotated[
    tuple[RedirectDeclaration, ...], BeforeValidator(_mappings), Field(max_length=MAX_RULES)
]
RewriteField = Annotated[
    tuple[RewriteDeclaration, ...], BeforeValidator(_mappings), Field(max_length=MAX_RULES)
]


def site_complaints(
    basic_auth: BasicAuthDeclaration | None,
    redirects: tuple[RedirectDeclaration, ...],
    rewrite: tuple[RewriteDeclaration, ...],
) -> Complaints:
    """Return the conflicts between the fields of a site."""
    found: Complaints = []
    if basic_auth is not None and basic_auth.allow_groups and basic_auth.groups is None:
        found.append(
            (
                "basic_auth.allow_groups",
                "allow_groups needs groups",
                "add groups: FILE, with lines `GROUP: USER USER`",
            )
        )
    found += [
        (
            f"redirects.{number}.to",
            f"{each.to} is below {each.path.text or '/'}, and is redirected again",
            "use another path, or {exact: PATH}",
        )
        for number, each in enumerate(redirects)
        if each.to.startswith("/") and _covers(each.path, each.to)
    ]
    for number, each in enumerate(rewrite):
        for former in rewrite[:number]:
            if _covers(former.path, each.path.text) or _covers(each.path, former.path.text):
                found.append(
                    (
                        f"rewrite.{number}.path",
                        f"{each.path.text or '/'} and {former.path.text or '/'} match the same "
                        "requests",
                        "use paths of which none is below another one",
                    )
                )
                break
    return found


def _covers(pattern: Path, path: str) -> bool:
    """Return whether `pattern` matches `path`."""
    if pattern.is_exact:
        return path == pattern.text
    return f"{path}/".startswith(f"{pattern.text}/")
