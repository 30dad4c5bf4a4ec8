"""`tls:` of a frontend, and `acme:`."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, StrictBool, model_validator

from fc_frontend.config.fields import Strict, error, short
from fc_frontend.plan.addresses import PATH_LETTERS, SAFE_PATH, NotAnAddress, parse_bind
from fc_frontend.plan.model import Bind, CertificateSource, FrontendTls

_PATTERN = re.compile(rf"/[*?!\[\]{PATH_LETTERS}]+")
_MAX_LENGTH = 4000
_MAX_SOURCES = 1000


def _path(value: Any, pattern: re.Pattern[str] = SAFE_PATH) -> str:
    if not isinstance(value, str) or not pattern.fullmatch(value) or len(value) > _MAX_LENGTH:
        more = ", or a pattern with * and ?" if pattern is _PATTERN else ""
        raise error(
            f"{short(value)} is not a usable path",
            f"give an absolute path of letters, digits and ._+@=~/-{more}",
        )
    if ".." in value.split("/"):
        raise error(f"{value!r} has a component `..`", "write the path without it")
    return value


def _source(value: Any) -> CertificateSource:
    if isinstance(value, CertificateSource):
        return value
    if not isinstance(value, dict):
        return CertificateSource(_path(value, _PATTERN))
    if value.keys() != {"certificate", "key"}:
        raise error(
            "a certificate with a separate key needs two files",
            "write {certificate: FILE, key: FILE}, or a path alone",
        )
    return CertificateSource(_path(value["certificate"]), _path(value["key"]))


def _sources(value: Any) -> Any:
    listed = value if isinstance(value, list) else [value]
    if len(listed) > _MAX_SOURCES:
        raise error(f"more than {_MAX_SOURCES} items", "use a directory or a pattern")
    return listed


def _default(value: Any) -> Any:
    source = _source(value)
    if not SAFE_PATH.fullmatch(source.path):
        raise error(f"{source.path} is a pattern", "give one file")
    return source


def _place(value: Any) -> Bind:
    try:
        bind = parse_bind(value) if isinstance(value, str) else None
    except NotAnAddress as exc:
        raise error(str(exc), exc.remedy) from None
    if bind is None or bind.kind != "ip" or bind.host == "*":
        raise error(f"{value} is not an IP address with a port", "write 127.0.0.1:8402")
    return bind


class AcmeDeclaration(Strict):
    """`acme:` of a frontend."""

    challenges: Annotated[Bind, BeforeValidator(_place)]


class FrontendTlsDeclaration(Strict):
    """`tls:` of a frontend, which terminates TLS."""

    certificates: Annotated[
        tuple[Annotated[CertificateSource, BeforeValidator(_source)], ...],
        BeforeValidator(_sources),
        Field(min_length=1),
    ]
    default: Annotated[CertificateSource, BeforeValidator(_default)] | None = None
    client_ca: Annotated[str, BeforeValidator(_path)] | None = None
    client_certificates: Literal["required", "optional"] | None = None
    profile: Literal["intermediate", "modern"] = "intermediate"
    passthrough: StrictBool = False

    @model_validator(mode="after")
    def _has_authority(self) -> FrontendTlsDeclaration:
        if self.client_certificates is not None and self.client_ca is None:
            raise error(
                "client_certificates needs client_ca",
                "give client_ca: FILE, which verifies the certificates of clients",
            )
        return self

    def model(self) -> FrontendTls:
        return FrontendTls(
            certificates=self.certificates,
            default=self.default,
            client_ca=self.client_ca,
            is_client_optional=self.client_certificates == "optional",
            profile=self.profile,
            passthrough=self.passthrough,
        )
