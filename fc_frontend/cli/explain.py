"""`fc-frontend explain`: trace why a service is not served."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING

import click

from fc_frontend.cli import completion
from fc_frontend.cli.common import Exit, common_options, emit, fail, format_options, say, style
from fc_frontend.cli.progress import is_quiet, step
from fc_frontend.errors import Unavailable

if TYPE_CHECKING:
    from fc_frontend.explain.facts import Facts
    from fc_frontend.explain.steps import Explanation, Step, StepVerdict
    from fc_frontend.explain.urls import UrlRoute

_CODES = {"ok": Exit.GOOD, "unknown": Exit.CANNOT_TELL}
_COLORS = {"ok": "green", "warn": "yellow", "bad": "red", "unknown": "yellow"}

_MAX_NAMES = 5
EPILOG = """\
\b
Examples:
  fc-frontend explain shop  why shop is not served, or that it is
  fc-frontend explain https://shop.example.org/api/x  where a URL leads, and the same
  fc-frontend explain svc/shop/web  a Service of the cluster: its address, status and ports
"""


@click.command("explain", epilog=EPILOG)
@common_options
@format_options("text", "json")
@click.argument("service", shell_complete=completion.service)
def command(config: str, shape: str, service: str) -> None:
    """Trace step by step why SERVICE is not served, and show what to do.

    Checks the declaration, cluster DNS, networks, slots, HAProxy's servers and their health
    checks, the bind, and whether HAProxy runs the declared configuration. Queries cluster DNS for
    at most 2 s; works without the daemon and changes nothing. As root it also shows which process
    uses a bind. With a URL instead of SERVICE, shows the frontend, route and service that answer.
    With svc/NAMESPACE/NAME, shows whether a Service of type LoadBalancer has an address, and all
    services here that lead to its pods.

    \b
    0  the service is served
    1  the service is not served, or there are problems
    3  unknown
    """
    from fc_frontend.explain.collect import collect
    from fc_frontend.explain.kubernetes_service import PREFIX
    from fc_frontend.explain.steps import explain
    from fc_frontend.explain.urls import url_route

    if service.startswith(PREFIX):
        sys.exit(_explain_kubernetes_service(config, service, shape))
    route = None
    try:
        if "://" in service:
            route = url_route(config, service)
            if route.service is None:
                _print_dead_end(route, shape)
                sys.exit(Exit.PROBLEMS)
            service = route.service
        with step("querying cluster DNS, HAProxy and the daemon"):
            facts = collect(config, service)
    except Unavailable as exc:
        fail(exc.problems, Exit.CANNOT_TELL)
    explanation = explain(facts)
    if shape == "json":
        emit(explanation_document(facts, explanation, route))
    else:
        if route is not None and not is_quiet():
            say(f"{style('ok     ', 'green')} {'route':13} {route.answer}")
            _print_certificate(route)
        print_explanation(explanation, facts.state.value)
    sys.exit(_CODES.get(explanation.verdict.value, Exit.PROBLEMS))


def _explain_kubernetes_service(config: str, name: str, shape: str) -> int:
    """Explain a Service of the cluster and the services that serve it; return the exit code."""
    from fc_frontend.explain.kubernetes_service import collect_service
    from fc_frontend.explain.steps import explain, worst

    try:
        with step("querying the API, cluster DNS, HAProxy and the daemon"):
            found = collect_service(config, name)
    except Unavailable as exc:
        fail(exc.problems, Exit.CANNOT_TELL)
    explanations = [explain(facts) for facts in found.services]
    verdict = worst([*(s.verdict for s in found.steps), *(e.verdict for e in explanations)])
    if shape == "json":
        pairs = zip(found.services, explanations, strict=True)
        documents = [explanation_document(facts, each) for facts, each in pairs]
        emit({"version": 1, "verdict": verdict.value, **found.as_json(), "services": documents})
    else:
        _print_steps(found.steps, None)
        for facts, each in zip(found.services, explanations, strict=True):
            say()
            say(style(facts.name))
            print_explanation(each, facts.state.value)
    return _CODES.get(verdict.value, Exit.PROBLEMS)


def _print_dead_end(route: UrlRoute, shape: str) -> None:
    """Print that a URL leads to no service."""
    if shape == "json":
        emit({"version": 1, "verdict": "bad", "route": route.as_json()})
        return
    say(f"{style('bad    ', 'red')} {'route':13} {route.answer}")
    _print_certificate(route)
    if route.remedy:
        say(f"{'':20} → {route.remedy}")


def _print_certificate(route: UrlRoute) -> None:
    """Print the certificate that is served to clients, if the daemon reports it."""
    if route.certificate is not None:
        served = route.certificate
        names = ", ".join(served.certificate.names[:_MAX_NAMES])
        said = f"{names}, until {served.ends_on} ({served.path})"
        say(f"{style('ok     ', 'green')} {'certificate':13} {said}")


def explanation_document(
    facts: Facts, explanation: Explanation, route: UrlRoute | None = None
) -> dict[str, object]:
    """Return the document that `explain --json` prints."""
    cause = explanation.cause
    return {
        "version": 1,
        "service": explanation.service,
        "verdict": explanation.verdict.value,
        "state": facts.state.value,
        "serves": explanation.serves,
        "summary": explanation.summary,
        "cause": cause.as_json() if cause else None,
        "steps": [each.as_json() for each in explanation.steps],
        "facts": facts.as_json(),
        "route": route.as_json() if route else None,
    }


def print_explanation(explanation: Explanation, state: str) -> None:
    """Print each step, and the cause."""
    cause = explanation.cause
    _print_steps(explanation.steps, cause)
    if is_quiet() and explanation.verdict.value == "ok":
        return
    say()
    color = "green" if explanation.serves and cause is None else "red"
    # Without an answer from HAProxy, the state is the daemon's and was not verified here.
    word = "unknown" if explanation.verdict.value == "unknown" else state
    say(f"{style(word, color)}: {explanation.summary}")
    if cause is not None and cause.remedy:
        say(f"    → {cause.remedy}")


def _print_steps(steps: Iterable[Step], cause: Step | None) -> None:
    """Print steps; the remedy of `cause` is printed later."""
    for each in steps:
        if is_quiet() and each.verdict.value in ("ok", "unknown"):
            continue
        word = _word(each.verdict)
        say(f"{word} {each.name:13} {each.said}")
        if each.remedy and each is not cause:
            say(f"{'':20} → {each.remedy}")
        for line in each.details:
            say(f"{'':22}{line}".rstrip())


def _word(verdict: StepVerdict) -> str:
    return style(f"{verdict.value:7}", _COLORS[verdict.value])
