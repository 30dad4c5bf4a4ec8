"""Query the daemon's status over HTTP.

Another process may listen on that port: an answer that does not have the daemon's format is
rejected.
"""

from __future__ import annotations

import http.client
import io
import json
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fc_frontend.certificates.served import Certificate, Served
from fc_frontend.errors import Cause, Problem, Severity, Unavailable
from fc_frontend.explain.facts import Daemon, DaemonService, Held, LastReload
from fc_frontend.model.api_state import ApiState
from fc_frontend.model.load_balancer_state import BalancedService, LoadBalancerView
from fc_frontend.model.service_state import Counts, HaproxyState
from fc_frontend.plan.frontend_views import FrontendView, ServiceRoutes
from fc_frontend.plan.model import Bind, Freshness, Kind
from fc_frontend.text import one_line

TIMEOUT = 5.0
"""Seconds for the whole answer, which may be queued for a second or longer."""
_MOST_BYTES = 64 * 1024 * 1024
_LAST_MOMENT = 1e11
_STATES = ("up", "down", "drained", "maintenance", "free", "standby")
_CAUSES = {cause.value: cause for cause in Cause}


def ask_daemon(listen: Bind | None, timeout: float = TIMEOUT) -> Daemon:
    """Return the status of the daemon that listens on `listen`.  Raises `Unavailable`."""
    if listen is None or listen.port is None:
        raise Unavailable.of(
            "the daemon cannot be asked: `listen` is null",
            "set listen, such as 127.0.0.1:9484",
            field="listen",
        )
    try:
        content = _get(listen.local_host, listen.port, timeout)
    except (OSError, http.client.HTTPException) as exc:
        reason = "no answer in time" if isinstance(exc, TimeoutError) else _reason(exc)
        raise Unavailable.of(
            f"the daemon does not answer on {listen}: {reason}",
            remedy="see `systemctl status fc-frontend` and its log; HAProxy keeps serving, "
            "but changes are not deployed",
        ) from exc
    try:
        return parse_status(json.loads(content, parse_constant=_not_a_number))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError) as exc:
        raise Unavailable.of(
            f"what answers on {listen} is not this fc-frontend's daemon",
            "see who listens there (`ss -ltnp`), or set another `listen`",
            field="listen",
        ) from exc


def _get(host: str, port: int, timeout: float) -> bytes:
    """Return the body of /status.json.  Raises OSError or HTTPException."""
    deadline = time.monotonic() + timeout
    content = bytearray()
    with socket.create_connection((host, port), timeout) as connection:
        name = f"[{host}]" if ":" in host else host
        request = f"GET /status.json HTTP/1.1\r\nHost: {name}:{port}\r\nConnection: close\r\n\r\n"
        connection.sendall(request.encode())
        while chunk := connection.recv(65536):
            content += chunk
            if len(content) > _MOST_BYTES:
                raise http.client.HTTPException(f"more than {_MOST_BYTES} bytes")
            # The deadline also limits an answer that arrives byte by byte.
            connection.settimeout(max(0.001, deadline - time.monotonic()))
    response = http.client.HTTPResponse(_Received(bytes(content)))  # type: ignore[arg-type]
    response.begin()
    if response.status != 200:
        raise http.client.HTTPException(f"HTTP status {response.status}")
    return response.read()


@dataclass(frozen=True, slots=True)
class _Received:
    """The received bytes, in the form that http.client reads from a socket."""

    content: bytes

    def makefile(self, _mode: str) -> io.BytesIO:
        return io.BytesIO(self.content)


def _reason(exc: Exception) -> str:
    return one_line(getattr(exc, "strerror", None) or exc or type(exc).__name__)[:200]


def parse_status(document: Any) -> Daemon:
    """Parse the daemon's /status.json.

    Raises KeyError, TypeError, ValueError or AttributeError if it does not have the daemon's
    format.
    """
    if document["version"] != 1:
        raise ValueError
    last, hold = document["last_reload"], document.get("held")
    return Daemon(
        version=_text(document["fc_frontend"]),
        in_sync=document["in_sync"] is True,
        wanted_hash=_optional(document["wanted_hash"]),
        running_hash=_optional(document["running_hash"]),
        problems=tuple(_problem(entry) for entry in document["problems"]),
        withheld=tuple(_held(entry) for entry in document["withheld"]),
        last_reload=LastReload(
            at=_moment(last["at"]),
            reasons=tuple(_text(reason) for reason in last["reasons"]),
            outcome=_text(last["outcome"]),
            seconds=float(last["seconds"]),
        )
        if last
        else None,
        haproxy=HaproxyState(document["haproxy"]),
        services=tuple(_service(entry) for entry in document["services"]),
        held_id=int(hold["id"]) if hold else None,
        held_by=_text(hold["by"]) if hold else "",
        held_hash=_text(hold["hash"]) if hold else "",
        take_over=_problem(document["take_over"]) if document.get("take_over") else None,
        certificates=tuple(_certificate(entry) for entry in document["certificates"]),
        frontends=tuple(_frontend(entry) for entry in document["frontends"]),
        api=_api(document["api"]) if document.get("api") else None,
        load_balancers=_load_balancers(document["load_balancers"])
        if document.get("load_balancers")
        else None,
    )


def _load_balancers(entry: Mapping[str, Any]) -> LoadBalancerView:
    return LoadBalancerView(
        is_leader=entry["leader"] is True,
        holder=_text(entry["holder"]),
        services=tuple(map(_balanced, entry["services"])),
    )


def _balanced(entry: Mapping[str, Any]) -> BalancedService:
    return BalancedService(
        namespace=_text(entry["namespace"]),
        name=_text(entry["name"]),
        addresses=tuple(map(_text, entry["addresses"])),
        published=tuple(map(_text, entry["published"])),
        condition=_text(entry["condition"]),
        problems=tuple((_text(p["message"]), _text(p["remedy"])) for p in entry["problems"]),
        overwritten=int(entry["overwritten"]),
    )


def _api(entry: Mapping[str, Any]) -> ApiState:
    age = entry["age"]
    return ApiState(
        is_current=entry["current"] is True,
        age=None if age is None else float(age),
        failure=_optional(entry["failure"]),
        held=frozenset(_text(name) for name in entry["held"]),
        expires=None if entry["expires"] is None else float(entry["expires"]),
    )


def _frontend(entry: Mapping[str, Any]) -> FrontendView:
    return FrontendView(
        name=_text(entry["name"]),
        binds=tuple(_text(bind) for bind in entry["binds"]),
        redirect_binds=tuple(_text(bind) for bind in entry["redirect_binds"]),
        has_tls=entry["tls"] is True,
        services=tuple(
            ServiceRoutes(
                service=_text(each["service"]),
                routes=tuple(_text(route) for route in each["routes"]),
                count=int(each["route_count"]),
            )
            for each in entry["services"]
        ),
    )


def _certificate(entry: Mapping[str, Any]) -> Served:
    return Served(
        frontend=_text(entry["frontend"]),
        path=_text(entry["file"]),
        certificate=Certificate(
            names=tuple(_text(name) for name in entry["names"]),
            not_before=_moment(entry["not_before"]),
            not_after=_moment(entry["not_after"]),
            serial=_text(entry["serial"]),
            fingerprint=_text(entry["fingerprint"]),
            algorithm=_text(entry["algorithm"]),
        ),
        is_default=entry["is_default"] is True,
    )


def _service(entry: Mapping[str, Any]) -> DaemonService:
    age = entry.get("answer_age")
    is_unknown = entry["freshness"] == Freshness.UNKNOWN and not entry["endpoints"]
    return DaemonService(
        name=_text(entry["name"]),
        file=_optional(entry["file"]),
        namespace=_text(entry["namespace"]),
        binds=tuple(_text(bind) for bind in entry["binds"]),
        is_current=entry["is_current"] is True,
        by_api=entry["discovery"] == Kind.API,
        reason=_text(entry["reason"]),
        error=_optional(entry["error"]),
        remedy=_text(entry["remedy"]),
        pods=None if is_unknown else len(entry["endpoints"]),
        slots=int(entry["slots"]),
        slots_short=int(entry["slots_short"]),
        slots_scarce=entry["slots_scarce"] is True,
        rejected=tuple(_text(address) for address in entry["rejected"]),
        drained=tuple(_text(address) for address in entry["drained"]),
        age=None if age is None else float(age),
        counts=_counts(entry["servers"]),
    )


def _counts(entry: Mapping[str, Any] | None) -> Counts | None:
    return None if entry is None else Counts(**{state: int(entry[state]) for state in _STATES})


def _held(entry: Mapping[str, Any]) -> Held:
    return Held(
        kind=_text(entry["kind"]),
        name=_text(entry["name"]),
        effect=_text(entry["effect"]),
        problems=tuple(_problem(problem) for problem in entry["problems"]),
        is_kept=entry["is_kept"] is True,
        is_known=entry["is_known"] is True,
    )


def _problem(entry: Mapping[str, Any]) -> Problem:
    return Problem(
        message=_text(entry["message"]),
        remedy=_text(entry["remedy"]),
        severity=Severity(entry["severity"]),
        file=_optional(entry["file"]),
        line=None if entry["line"] is None else int(entry["line"]),
        column=None if entry["column"] is None else int(entry["column"]),
        service=_optional(entry["service"]),
        field=_optional(entry["field"]),
        # A daemon of another version may use other causes.
        cause=_CAUSES.get(entry["cause"] or ""),
    )


def _moment(value: Any) -> float:
    if not 0 <= float(value) < _LAST_MOMENT:
        raise ValueError
    return float(value)


def _not_a_number(_name: str) -> float:
    raise ValueError


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return one_line(value)


def _optional(value: Any) -> str | None:
    return None if value is None else _text(value)
