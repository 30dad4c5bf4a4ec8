"""Generate manual pages from the text of --help: click's commands in, roff out.  Pure.

Paragraphs of a command's help become paragraphs, those that begin with `\\b` are printed verbatim,
and a list of exit codes becomes the section EXIT STATUS.

Not `click-man`: it has no sections EXIT STATUS, EXAMPLES, ENVIRONMENT and FILES, and does not
escape text, so that a line with a leading dot or a backslash is lost.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping

import click

PROGRAM = "fc-frontend"
_WIDTH = 76
_ROFF = {
    "\\": "\\(rs",
    "-": "\\-",
    "'": "\\(aq",
    "`": "\\(ga",
    '"': "\\(dq",
    "^": "\\(ha",
    "~": "\\(ti",
}
_CODES = re.compile(r"\b(?:Exit code\b|\d  \S)")

FILES = {
    "/etc/fc-frontend/config.yaml, /etc/fc-frontend/config.json": "The settings, and services.",
    "/etc/fc-frontend/services.d/*.yaml, *.json": "Services. Found beside the settings file.",
    "/etc/fc-frontend/services.d/*.cfg": "Raw sections of haproxy.cfg.",
    "/etc/haproxy/haproxy.cfg": "The generated configuration. haproxy.cfg.refused beside it is "
    "the one that HAProxy refused last. The setting haproxy.config_file.",
    "/var/lib/fc-frontend": "State: past configurations, running services, the last good answers "
    "of cluster DNS. The setting state_directory.",
    "/run/haproxy/master.sock, /run/haproxy/admin.sock": "HAProxy's sockets. The settings "
    "haproxy.master_socket and haproxy.runtime_socket.",
}
ENVIRONMENT = {
    "FC_FRONTEND_CONFIG": "The settings file, unless --config is given.",
    "NO_COLOR": "If set and not empty, output has no colours. Colours are used on terminals only.",
    "TERM": "With dumb, output has no colours and no progress line.",
}
EXIT_STATUS = {
    "0": "Good.",
    "1": "Problems: something is refused, would change, or does not work.",
    "2": "Wrong usage.",
    "3": "Unknown: an answer, a file or a program is missing.",
}


def pages(
    group: click.Group, summaries: Mapping[str, str], version: str, date: str
) -> dict[str, str]:
    """Return all pages by file name: fc-frontend.1, and one for each command of `group`.

    `summaries` has one line for each command, in the order of the list; `date` is YYYY-MM-DD.
    """
    root = click.Context(group, info_name=PROGRAM, **group.context_settings)
    found = {f"{PROGRAM}.1": _main(root, group, summaries, version, date)}
    for name, summary in summaries.items():
        command = group.get_command(root, name)
        assert command is not None
        context = click.Context(command, info_name=name, parent=root)
        found[f"{PROGRAM}-{name}.1"] = _page(context, command, summary, version, date)
    return found


def _main(
    context: click.Context,
    group: click.Group,
    summaries: Mapping[str, str],
    version: str,
    date: str,
) -> str:
    prose, codes = _parts(group)
    assert not codes
    lines = [
        *_head(PROGRAM, prose[0].rstrip("."), version, date),
        *_synopsis(context, group),
        *_section("DESCRIPTION", _paragraphs(prose[1:])),
        ".SH COMMANDS",
    ]
    for name, summary in summaries.items():
        lines += [".TP", f"\\fB{escaped(f'{PROGRAM}-{name}')}\\fR(1)", *filled(summary)]
    lines += [
        *_options(context, group),
        *_listed("EXIT STATUS", EXIT_STATUS),
        ".PP",
        *filled("With `--format nagios` they are those of Nagios."),
        *_listed("ENVIRONMENT", ENVIRONMENT),
        *_listed("FILES", FILES),
        *_see_also([f"{PROGRAM}-{name}" for name in summaries], "haproxy"),
    ]
    return "\n".join(lines) + "\n"


def _page(
    context: click.Context, command: click.Command, summary: str, version: str, date: str
) -> str:
    prose, codes = _parts(command)
    examples = _split(inspect.cleandoc(command.epilog or ""))
    has_settings = any(parameter.name == "config" for parameter in command.params)
    lines = [
        *_head(f"{PROGRAM}-{context.info_name}", summary.rstrip("."), version, date),
        *_synopsis(context, command),
        *_section("DESCRIPTION", _paragraphs(prose)),
        *_options(context, command),
        *_section("EXIT STATUS", _codes(codes)),
        *(_listed("ENVIRONMENT", ENVIRONMENT) if has_settings else ()),
        *(_listed("FILES", FILES) if has_settings else ()),
        *_section("EXAMPLES", _paragraphs(examples)),
        *_see_also([PROGRAM]),
    ]
    return "\n".join(lines) + "\n"


def _head(name: str, summary: str, version: str, date: str) -> list[str]:
    title = f'.TH {escaped(name.upper())} 1 {date} "{PROGRAM} {version}" "{PROGRAM}"'
    return [title, ".SH NAME", *filled(f"{name} - {summary}")]


def _synopsis(context: click.Context, command: click.Command) -> list[str]:
    pieces = " ".join(command.collect_usage_pieces(context))
    return [
        ".SH SYNOPSIS",
        f"\\fB{escaped(context.command_path)}\\fR {escaped(pieces)}",
    ]


def _options(context: click.Context, command: click.Command) -> list[str]:
    records = [parameter.get_help_record(context) for parameter in command.get_params(context)]
    lines = []
    for names, text in filter(None, records):
        # `-c, --config PATH`: option names in bold, placeholders of values in italics.
        words = [
            f"\\fB{escaped(word.rstrip(','))}\\fR{',' if word.endswith(',') else ''}"
            if word.startswith("-")
            else f"\\fI{escaped(word)}\\fR"
            for word in names.split()
        ]
        lines += [".TP", " ".join(words), *filled(text)]
    return _section("OPTIONS", lines)


def _codes(paragraphs: list[str]) -> list[str]:
    lines: list[str] = []
    for paragraph in paragraphs:
        rows = [line.split(None, 1) for line in _verbatim(paragraph)]
        if any(not code.isdigit() for code, _ in rows):
            lines += _as_it_is(_verbatim(paragraph))
            continue
        for code, meaning in rows:
            lines += [".TP", f"\\fB{code}\\fR", *filled(meaning)]
    return lines


def _listed(title: str, entries: Mapping[str, str]) -> list[str]:
    lines = []
    for name, meaning in entries.items():
        lines += [".TP", f"\\fB{escaped(name)}\\fR", *filled(meaning)]
    return _section(title, lines)


def _see_also(own: list[str], *others: str) -> list[str]:
    names = [*own, *others]
    lines = [f".BR {escaped(name)} (1)," for name in names[:-1]]
    return _section("SEE ALSO", [*lines, f".BR {escaped(names[-1])} (1)"])


def _section(title: str, lines: list[str]) -> list[str]:
    if not lines:
        return []
    return [f".SH {title}", *(lines[1:] if lines[0] == ".PP" else lines)]


def _parts(command: click.Command) -> tuple[list[str], list[str]]:
    """Return the paragraphs of a command's help, and separately those with its exit codes."""
    prose: list[str] = []
    codes: list[str] = []
    for paragraph in _split(inspect.cleandoc(command.help or "")):
        is_codes = paragraph.startswith("\b") and _CODES.match(_verbatim(paragraph)[0])
        (codes if is_codes else prose).append(paragraph)
    return prose, codes


def _split(text: str) -> list[str]:
    return [paragraph for paragraph in re.split(r"\n\s*\n", text) if paragraph.strip()]


def _verbatim(paragraph: str) -> list[str]:
    return paragraph.removeprefix("\b").strip("\n").split("\n")


def _paragraphs(paragraphs: list[str]) -> list[str]:
    lines: list[str] = []
    for paragraph in paragraphs:
        lines.append(".PP")
        if paragraph.startswith("\b"):
            lines += _as_it_is(_verbatim(paragraph))
        else:
            lines += filled(paragraph)
    return lines


def _as_it_is(rows: list[str]) -> list[str]:
    return [".nf", *(_line(_marked(row)) for row in rows), ".fi"]


def filled(text: str) -> list[str]:
    """Return running text as lines of roff; text in backquotes is bold."""
    lines: list[str] = []
    line = ""
    for word in _marked(" ".join(text.split())).split(" "):
        if line and len(line) + len(word) >= _WIDTH:
            lines.append(_line(line))
            line = word
        else:
            line = f"{line} {word}" if line else word
    return [*lines, _line(line)]


def _marked(text: str) -> str:
    return "".join(_pieces(text))


def _pieces(text: str) -> Iterator[str]:
    for number, piece in enumerate(re.split(r"`([^`]+)`", text)):
        yield f"\\fB{escaped(piece)}\\fR" if number % 2 else escaped(piece)


def _line(text: str) -> str:
    """Return a line that roff treats as text even if it begins with a dot."""
    return f"\\&{text}" if text.startswith(".") else text


def escaped(text: str) -> str:
    """Return `text` escaped for roff: minus signs, quotes and backslashes are shown as typed."""
    return "".join(
        _ROFF.get(letter, letter if letter.isascii() else f"\\[u{ord(letter):04X}]")
        for letter in text
        if letter.isprintable()
    )
