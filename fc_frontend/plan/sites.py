"""What a site needs besides its route: who may log in, cookies, redirects, rewritten paths.

`SiteFiles` is what files of this host add to a service; all else is declared.
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
    only members of one of these groups get in.
    """

    users: str
    groups: str | None = None
    allow_groups: tuple[str, ...] = ()
    realm: str = "restricted"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sticky:
    """A client stays with its pod by a cookie, as long as the pod takes requests.

    Without a name, each service has a cookie of its own: several may share a host.
    """

    cookie: str | None = None
    same_site: Literal["Lax", "Strict", "None"] = "Lax"


@dataclass(frozen=True, slots=True)
class Redirect:
    """Requests for `path` are redirected.

    `to` is a path or a URL; it replaces a prefix, and the rest of the path and the query follow.
    """

    path: Path
    to: str
    code: int = 308


@dataclass(frozen=True, slots=True)
class Rewrite:
    """In requests to the pods, `to` replaces the prefix or exact path `path`."""

    path: Path
    to: str


@dataclass(frozen=True, slots=True)
class SiteFiles:
    """What files of this host say for a service.

    `digests` are of the files that `logins` were read from, by path.  `cookie_key` keeps clients
    from computing a pod's address from its cookie.
    """

    logins: tuple[Login, ...] = ()
    digests: tuple[tuple[str, str], ...] = ()
    cookie_key: str = field(default="", repr=False)


NO_FILES = SiteFiles()
