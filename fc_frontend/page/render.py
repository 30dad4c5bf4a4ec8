"""Render the pages as bytes, and the headers that they need.

Every value is escaped.  Style and script are inlined, and browsers accept only those with the
hashes in the policy.  Nothing is fetched except from this listener.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from urllib.parse import parse_qs, quote

import jinja2
from markupsafe import Markup, escape

from fc_frontend import __version__
from fc_frontend.certificates.served import WARN_SECONDS
from fc_frontend.errors import Problem
from fc_frontend.explain.overview import StatusLevel
from fc_frontend.explain.steps import StepVerdict, duration
from fc_frontend.model.service_state import Health
from fc_frontend.page.values import Board, Detail, bar, select, servers
from fc_frontend.text import one_line

CONTENT_TYPE = "text/html; charset=utf-8"
MOST_SERVERS = 200
"""The number of servers of a service that are shown."""
MOST_HELD = 50
"""The number of withheld changes that are shown."""
LONGEST_TEXT = 100
_LONGEST_QUERY = 2000
_SYMBOLS = {
    StatusLevel.OK: "●",
    StatusLevel.WARNING: "▲",
    StatusLevel.CRITICAL: "✖",
    StatusLevel.UNKNOWN: "?",
}
_COLORS = {
    StatusLevel.OK: "#2e9e5b",
    StatusLevel.WARNING: "#d99a1c",
    StatusLevel.CRITICAL: "#d3382d",
    StatusLevel.UNKNOWN: "#808890",
}
_VERDICTS = {
    StepVerdict.OK: StatusLevel.OK,
    StepVerdict.WARN: StatusLevel.WARNING,
    StepVerdict.BAD: StatusLevel.CRITICAL,
    StepVerdict.UNKNOWN: StatusLevel.UNKNOWN,
}
_HEALTH = {
    Health.UP: StatusLevel.OK,
    Health.DOWN: StatusLevel.CRITICAL,
    Health.DRAINED: StatusLevel.WARNING,
    Health.MAINTENANCE: StatusLevel.WARNING,
}


@dataclass(frozen=True, slots=True)
class Asked:
    """The parameters of a query string: a text to search for, and a page, from 1."""

    text: str = ""
    page: int = 1


def asked(query: str) -> Asked:
    """Parse a query string; invalid parameters are ignored."""
    try:
        found = parse_qs(query[:_LONGEST_QUERY], max_num_fields=16, errors="replace")
    except ValueError:
        return Asked()
    text = one_line(found.get("q", [""])[-1])[:LONGEST_TEXT].strip()
    number = found.get("page", ["1"])[-1]
    is_number = number.isascii() and number.isdigit() and len(number) < 8
    return Asked(text, int(number) if is_number and int(number) else 1)


def overview_page(board: Board, wanted: Asked) -> bytes:
    """Render the page at `/`."""
    selection = select(board.lines, wanted.text, wanted.page)
    return _page("overview.html.j2", board, q=wanted.text, selection=selection)


def service_page(detail: Detail) -> bytes:
    """Render the page of one service."""
    level = StatusLevel.UNKNOWN
    if detail.explanation is not None:
        level = _VERDICTS[detail.explanation.verdict]
    return _page(
        "service.html.j2",
        detail.board,
        detail=detail,
        level=level,
        servers=servers(detail.facts) if detail.facts else (),
        most=MOST_SERVERS,
    )


def missing_page(board: Board, name: str, near: str | None) -> bytes:
    """Render the page for a service that does not exist."""
    return _page("missing.html.j2", board, name=one_line(name)[:LONGEST_TEXT], near=near)


def not_yet_page(problem: Problem, host: str) -> bytes:
    """Render the page that is shown until the daemon has a status to show."""
    template = _environment().get_template("not_yet.html.j2")
    return template.render(problem=problem, host=host).encode("utf-8", "replace")


@lru_cache(maxsize=1)
def headers() -> Mapping[str, str]:
    """Return the HTTP headers of each page."""
    policy = {
        "default-src": "'none'",
        "style-src": _hash("page.css"),
        "script-src": _hash("page.js"),
        "connect-src": "'self'",
        "img-src": "data:",
        "form-action": "'self'",
        "base-uri": "'none'",
        "frame-ancestors": "'none'",
    }
    return {"Content-Security-Policy": "; ".join(" ".join(item) for item in policy.items())}


def _page(template: str, board: Board, **values: object) -> bytes:
    text = (
        _environment()
        .get_template(template)
        .render({"board": board, "overview": board.overview, "host": board.host, "q": "", **values})
    )
    return text.encode("utf-8", "replace")


@lru_cache(maxsize=1)
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("fc_frontend.page"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        code=_code,
        duration=duration,
        clock=_clock,
        number=_number,
        rate=_rate,
        symbol=_SYMBOLS.__getitem__,
        css=lambda level: level.name.lower(),
        segment=lambda text: quote(text, safe=""),
        level_of=lambda value: (
            _VERDICTS[value] if isinstance(value, StepVerdict) else _HEALTH[value]
        ),
    )
    environment.globals.update(
        bar=bar,
        icon=_icon,
        version=__version__,
        level_of_all=StatusLevel,
        most_held=MOST_HELD,
        warn_seconds=WARN_SECONDS,
        style=Markup(_inlined("page.css")),  # noqa: S704 - our own file
        script=Markup(_inlined("page.js")),  # noqa: S704 - our own file
    )
    return environment


@lru_cache(maxsize=2)
def _inlined(name: str) -> str:
    loader = jinja2.PackageLoader("fc_frontend.page")
    return loader.get_source(jinja2.Environment(autoescape=True), name)[0]


def _hash(name: str) -> str:
    digest = hashlib.sha256(_inlined(name).encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def _icon(level: StatusLevel) -> str:
    """Return an icon of the state, for the browser tab."""
    shapes = {
        StatusLevel.OK: '<circle cx="8" cy="8" r="6"/>',
        StatusLevel.WARNING: '<path d="M8 1 15 14H1z"/>',
        StatusLevel.CRITICAL: '<path d="M1 1h14v14H1z"/>',
        StatusLevel.UNKNOWN: '<path d="M8 1l7 7-7 7-7-7z"/>',
    }
    picture = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16" fill="{_COLORS[level]}">'
        f"{shapes[level]}</svg>"
    )
    return f"data:image/svg+xml,{quote(picture)}"


def _code(text: str) -> Markup:
    """Return `text` with the parts between backticks marked up as code."""
    parts = text.split("`")
    if len(parts) % 2 == 0:
        return escape(text)
    marked = (Markup("<code>{}</code>").format(p) if n % 2 else p for n, p in enumerate(parts))
    return Markup("").join(marked)


def _clock(at: float, form: str = "%Y-%m-%d %H:%M:%S") -> str:
    return datetime.fromtimestamp(at, UTC).strftime(form)


def _number(value: float) -> str:
    return f"{value:,.0f}".replace(",", "\u202f")


def _rate(value: float | None) -> str:
    """Format a rate per second, with a decimal only where it is significant."""
    if value is None:
        return "—"
    if value and value < 10 and value != int(value):
        return f"{value:.1f}" if value >= 0.1 else "<0.1"
    return _number(value)
