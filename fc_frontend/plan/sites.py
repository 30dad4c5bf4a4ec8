"""The settings of a site besides its routes: logins, cookies, redirects and rewritten paths.

`SiteFiles` holds values from files of this host; all other values are declared.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from fc_frontend.syntax.htpasswd import Login
from fc_frontend.syntax.routes import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class BasicAuth:
    """Basic authentication (RFC 7617) with the users of a file.

    `users` is a file of htpasswd(1), `groups` one with lines `GROUP: USER…`.  With `allow_groups`,
    only members of one of these groups are accepted.
    """

    users: str
    groups: str | None = None
    allow_groups: tuple[str, ...] = ()
    realm: str = "restricted"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sticky:
    """A cookie that keeps a client at its pod, as long as the pod accepts requests.

    Without a name, each service has a cookie of its own: several may share a host.
    """

    cookie: str | None = None
    same_site: Literal["Lax", "Strict", "None"] = "Lax"


@dataclass(frozen=True, slots=True)
class Redirect:
    """A redirect of requests for `path`.

    `to` is a path or a URL; it replaces the prefix, and the rest of the path and the query are
    appended.
    """

    path: Path
    to: str
    code: int = 308


@dataclass(frozen=True, slots=True)
class Rewrite:
    """`to` replaces the prefix or exact path `path` in requests to the pods."""

    path: Path
    to: str


@dataclass(frozen=True, slots=True)
class SiteFiles:
    """The values that a service takes from files of this host.

    `digests` are those of the files that `logins` were read from, by path.  `cookie_key` prevents
    clients from computing a pod's address from its cookie.
    """

    logins: tuple[Login, ...] = ()
    digests: tuple[tuple[str, str], ...] = ()
    cookie_key: str = field(default="", repr=False)


NO_FILES = SiteFiles()
