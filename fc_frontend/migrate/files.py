"""Write an import as files: config.yaml and services.d, in YAML that people can edit."""

from __future__ import annotations

import re
from typing import Any

from fc_frontend.migrate.convert import Imported, ImportedFragment, ImportedProxy
from fc_frontend.text import json_text, one_line

_PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9_./-]*(?: [A-Za-z0-9_./()-]+)*")
_WORDS_OF_YAML = frozenset("true false null yes no on off y n".split())
_CLUSTER_NOTE = (
    "# haproxy.cfg lacks the networks: set those of the cluster. Below are the defaults;",
    "# addresses outside of them get no traffic.",
    "# service_network: 10.0.0.0/24",
    "# pod_network: 10.1.0.0/16",
)


def files(imported: Imported) -> dict[str, str]:
    """Return the text of each file, by its path relative to the directory of the settings file."""
    proxies = {"frontends": imported.frontends, "services": imported.services}
    sources = sorted(
        {each.file for several in proxies.values() for each in several}
        | {section.file for each in imported.fragments for section in each.sections}
        | {problem.file for problem in imported.problems if problem.file}
    )
    found = {"config.yaml": _settings(imported.settings, sources)}
    for kind, several in proxies.items():
        found |= {f"services.d/{each.name}.yaml": _proxy(kind, each) for each in several}
    found |= {f"services.d/{f.name}.cfg": _fragment(f) for f in imported.fragments}
    return found


def _settings(settings: dict[str, Any], sources: list[str]) -> str:
    origin = f" from {', '.join(one_line(source) for source in sources)}" if sources else ""
    lines = [f"# Written by `fc-frontend import`{origin}."]
    for key, value in settings.items():
        lines.append(f"{key}:" if value else f"{key}: {{}}")
        for name, inner in value.items():
            lines += _entry(name, inner, "  ")
        if key == "cluster":
            lines += [f"  {note}" for note in _CLUSTER_NOTE]
    return "\n".join(lines) + "\n"


def _proxy(kind: str, proxy: ImportedProxy) -> str:
    lines = [f"# {one_line(proxy.file)}, line {proxy.line}"]
    lines += [one_line(comment) for comment in proxy.comment]
    lines += [f"{kind}:", f"  {_scalar(proxy.name)}:"]
    for name, value in proxy.fields.items():
        lines += _entry(name, value, "    ")
    return "\n".join(lines) + "\n"


def _fragment(fragment: ImportedFragment) -> str:
    lines = ["# HAProxy text, because these sections cannot be declared:"]
    for section in fragment.sections:
        place = f"{section.file}, line {section.line}"
        lines.append(f"# - {one_line(f'{section.title} ({place}): {section.reason}')}")
    return "\n".join(lines) + f"\n\n{fragment.text}"


def _entry(name: str, value: Any, indent: str) -> list[str]:
    key = f"{indent}{_scalar(name)}:"
    if name in ("extra_config", "global_extra", "defaults_extra"):
        return [f"{key} |", *(f"{indent}  {line}" for line in value)]
    if isinstance(value, dict):
        return [key, *(line for k, v in value.items() for line in _entry(k, v, indent + "  "))]
    if isinstance(value, list):
        return [f"{key} [{', '.join(_scalar(item) for item in value)}]"]
    return [f"{key} {_scalar(value)}"]


def _scalar(value: Any) -> str:
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {_scalar(each)}' for key, each in value.items())}}}"
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    text = str(value)
    if _PLAIN.fullmatch(text) and text.lower() not in _WORDS_OF_YAML:
        return text
    return json_text(text)
