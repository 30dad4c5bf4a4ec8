"""Text of one unit never begins, ends or conditions a section, whatever it contains.

The texts here are ways to write such a line; all tests run against a real HAProxy.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from fc_frontend.config.declare import load
from fc_frontend.config.fragments import fragment_of
from fc_frontend.config.templates import templates
from fc_frontend.errors import Problem, Refused, errors_in
from fc_frontend.haproxy.judge import judge
from fc_frontend.haproxy.validate import validate
from fc_frontend.plan.model import Haproxy
from fc_frontend.render.config import Config, config_hash, has_mark
from fc_frontend.render.render import render
from fc_frontend.syntax.lines import read_lines
from fc_frontend.syntax.sections import read_sections
from fc_frontend.syntax.units import MAX_OPTION_WORDS, Owner, raw_line_faults
from tests.faults.site import EXTRA, SERVICES, serving
from tests.hostile.real_words import disguised, random_line
from tests.support.frontend import Frontend
from tests.support.prepared import Rendered, prepare
from tests.test_injection import declared, directory, expected, parsed

LUA = "lua-load {lua}"
BEGINS = {
    "quoted": '"global"\n' + LUA,
    "half-quoted": '"glo"bal\n' + LUA,
    "single": "'global'\n" + LUA,
    "mixed": "g\"lo\"'ba'l\n" + LUA,
    "hex": "\\x67lobal\n" + LUA,
    "all-hex": "\\x67\\x6C\\x6f\\x62\\x61\\x6C\n" + LUA,
    "plain": "global\n" + LUA,
    "tabs": '\t"global"\t\n' + LUA,
    "empty-quotes": '""global\n' + LUA,
    "comment-after": '"global"# x\n' + LUA,
    "nul": "global\\x00junk\n" + LUA,
    "negated": "no global\n" + LUA,
    "default": "default 'global'\n" + LUA,
    "variable": '"$FC_KEYWORD"\n' + LUA,
    "default-value": '"${FC_UNSET-global}"\n' + LUA,
    "expansion": '"${FC_KEYWORD[*]}"\n' + LUA,
    "empty-variable": '"$FC_UNSET" global\n' + LUA,
    "negated-variable": 'no "$FC_KEYWORD"\n' + LUA,
    "section": '"$.SECTION"\n' + LUA,
    "described": '"global"\ndescription mine',
    "program": '"program" evil\ncommand touch {marker}',
    "frontend": '"frontend" evil\nbind 127.0.0.1:1',
    "backend": "'backend' evil",
    "defaults": "\\x64efaults\nmode tcp",
    "resolvers": "resolver\\x73 cluster",
    "namespaces": "namespace_list\nnamespace evil",
    "future": '"acme" evil',
}
CONDITIONS = {
    "if": '".if" 0',
    "if-hex": "\\x2eif 0",
    "if-plain": ".if 0",
    "if-true": "'.'if 1",
    "elif": "'.elif' 1",
    "else": "\\x2eelse",
    "endif": '".endif"',
    "alert": "\\x2ealert stop",
    "unknown": ".evil",
    "scope": "[evil]",
}
UNREADABLE = {
    "quote": 'acl a str(x) "',
    "quote-comment": "acl a str(x) 'a # b",
    "escape": "acl a str(\\x6",
    "words": "acl a str(x) " + "x " * 70,
    "64-and-a-blank": " ".join("x" * 64) + " # blank",
    "brace": 'acl a str("${A")',
    "expansion-flaw": 'acl a str("${A[1]}")',
    "name": 'acl a str("$1")',
    "long": "acl a str(x) " + "y" * 70_000,
    "default-in-long-line": 'acl a str(x) "${FC_UNSET-b}" ' + "y" * 1000,
    "empty": '"" bind 127.0.0.1:1',
    "hidden": "'' # listen",
    "nul-first": "\\x00 global",
}
LINES = {**BEGINS, **CONDITIONS, **UNREADABLE}
WORDS = {
    "quote": 'weight "1',
    "single": "weight '1",
    "comment": "weight 1 # x",
    "comment-in-word": "weight 1#",
    "escape": "weight \\x6",
    "backslash": "weight 1\\",
    "nul": "weight 1\\x00",
    "empty": 'weight 1 ""',
    "many": "weight 1 " * 24,
    "brace": 'weight "${A"',
}
FRAGMENTS = {
    "global": '"global"\n  lua-load {lua}\n',
    "headless": "  bind 127.0.0.1:1\nlisten a\n",
    "opened": "listen a{n}\n  .if 0\n",
    "across": 'listen a{n}\n  ".if" 0\nlisten b{n}\n  .endif\n',
    "around": ".if 1\nlisten a{n}\n.endif\n",
    "closed": "listen a{n}\n  \\x2eendif\n",
    "else-twice": "listen a{n}\n .if 0\n .else\n .else\n .endif\n",
    "elif-late": "listen a{n}\n .if 0\n .else\n .elif 1\n .endif\n",
    "argument": "listen a{n}\n .if 0\n .else x\n .endif\n",
    "unknown": "listen a{n}\n  .evil\n",
    "variable": 'listen a{n}\n  "$FC_KEYWORD"\n',
    "name": 'listen "$FC_KEYWORD"\n',
    "resolvers": "\"resolvers\" 'cluster'\n  nameserver a 127.0.0.1:53\n",
    "defaults": "defaults fc-tcp\n  mode http\n",
    "stats": 'listen "fc-"stats\n',
    "scope": "listen a{n}\n[evil]\n",
    "quote": 'listen a{n}\n  acl a str(")\n',
    "mark": "listen a{n}\n # fc-frontend unit: service shop\n",
}
GLOBAL = {
    "description": "description mine",
    "disguised": '"descr"iption mine',
    "state": "server-state-file /tmp/x",
    "daemon": "daemon",
    "warnings": "zero-warning",
    "reset": "resetenv",
    "unset": "unsetenv HAPROXY_PROCESSES",
    "set": 'setenv "HAPROXY_PROCESSES" x',
    "variable-name": 'setenv "$FC_KEYWORD" x',
    "prefix": "unix-bind prefix /tmp",
    "condition": ".if 1",
    "section": '"listen" evil',
    "mark": "# fc-frontend unit: service shop",
}


def lua_file(path: Path) -> tuple[Path, Path]:
    """Return a Lua file that creates a marker file when executed, and the path of the marker."""
    lua, marker = path / "evil.lua", path / "executed"
    lua.write_text(f'io.open("{marker}", "w"):close()\n')
    return lua, marker


def filled(text: str, path: Path, number: int = 0) -> str:
    """Return a text of the tables above, filled in for files in `path`."""
    for name, value in {
        "lua": path / "evil.lua",
        "marker": path / "executed",
        "n": number,
    }.items():
        text = text.replace(f"{{{name}}}", str(value))
    return text


def problem_of(path: Path, settings: Mapping[str, Any], **service: Any) -> Problem:
    """Return the only error of the settings and a service."""
    content = {
        "cluster": {"nameservers": ["127.0.0.1:53"]},
        "haproxy": {"runtime_socket": f"{path}/admin.sock", **settings},
        "services": {"shop": {"pod_port": 80, **service}},
    }
    (path / "config.json").write_text(json.dumps(content))
    (problem,) = errors_in(load(f"{path}/config.json").problems)
    assert problem.remedy
    return problem


def test_the_texts_are_what_they_are_for(haproxy_binary: str, short_directory: Path) -> None:
    """HAProxy would execute the Lua file: the tables contain real attacks."""
    _, marker = lua_file(short_directory)
    for name in ("quoted", "half-quoted", "mixed", "hex", "nul", "empty-quotes", "comment-after"):
        text = "listen shop\n  " + filled(BEGINS[name], short_directory)
        validate(haproxy_binary, text + "\n", timeout=20)
        assert marker.exists(), name
        marker.unlink()


@pytest.mark.parametrize("name", LINES)
@pytest.mark.parametrize("field", ["extra_config", "global_extra", "defaults_extra"])
def test_raw_lines(field: str, name: str, tmp_path: Path) -> None:
    text = "# comment\n\n" + filled(LINES[name], tmp_path)
    if field == "extra_config":
        problem = problem_of(tmp_path, {}, extra_config=text)
        assert (problem.service, problem.field) == ("shop", field)
    else:
        problem = problem_of(tmp_path, {field: text})
        assert problem.field == f"haproxy.{field}"
    assert problem.message.startswith("line 3: ")


@pytest.mark.parametrize("name", WORDS)
@pytest.mark.parametrize("field", ["server_options", "bind_options"])
def test_words_inside_a_line(field: str, name: str, tmp_path: Path) -> None:
    problem = problem_of(tmp_path, {}, **{field: WORDS[name]})
    assert (problem.service, problem.field) == ("shop", field)


def test_a_line_break_in_options_is_a_blank(tmp_path: Path) -> None:
    service = {"pod_port": 80, "binds": "127.0.0.1:80", "server_options": "weight 1\nlisten evil\n"}
    prepared = declared(tmp_path, {"shop": service})
    assert prepared.config is not None
    assert "check resolvers" in prepared.config.text
    assert " weight 1 listen evil\n" in prepared.config.text


def test_the_longest_options_fit_into_a_line(tmp_path: Path) -> None:
    service = {
        "pod_port": 80,
        "discovery": "wildcard",
        "fallback": "service",
        "tls": {"ca_file": "/etc/ca.pem", "sni": "a.example"},
        "server_options": "weight 1 " * (MAX_OPTION_WORDS // 2),
        "bind_options": "name a " * (MAX_OPTION_WORDS // 2 - 1) + "name \\\\",
    }
    prepared = declared(tmp_path, {"shop": service})
    assert not errors_in(prepared.problems)
    assert prepared.config is not None
    lines = list(read_lines(prepared.config.text))
    assert max(len(line.words) for line in lines) > MAX_OPTION_WORDS
    assert not any(line.fault for line in lines)


@pytest.mark.parametrize("name", GLOBAL)
def test_lines_of_global_that_fc_frontend_relies_on(name: str, tmp_path: Path) -> None:
    problem = problem_of(tmp_path, {"global_extra": filled(GLOBAL[name], tmp_path)})
    assert problem.field == "haproxy.global_extra"


@pytest.mark.parametrize("line", ["load-server-state-from-file none", '"mode" tcp', "disabled"])
def test_lines_of_defaults_that_fc_frontend_relies_on(line: str, tmp_path: Path) -> None:
    assert problem_of(tmp_path, {"defaults_extra": line}).field == "haproxy.defaults_extra"


def test_the_line_is_named_within_the_file(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(
        "haproxy:\n"
        "  global_extra: |\n"
        "    # comment\n"
        "\n"
        '    "desc"ription mine\n'
        "services:\n"
        "  shop:\n"
        "    podPort: 80\n"
        "    haproxyExtraConfig:\n"
        "      - option httpchk\n"
        "      - |\n"
        "        option httpchk\n"
        "        \\x2eif 0\n"
    )
    problems = errors_in(load(str(tmp_path / "config.yaml")).problems)
    places = {(problem.field, problem.line, problem.column) for problem in problems}
    assert places >= {("haproxy.global_extra", 5, 5), ("extra_config", 13, 9)}


@pytest.mark.parametrize("name", FRAGMENTS)
def test_fragments(name: str, tmp_path: Path) -> None:
    (tmp_path / "services.d").mkdir()
    (tmp_path / "config.json").write_text('{"cluster": {"nameservers": ["127.0.0.1:53"]}}')
    (tmp_path / "services.d" / "evil.cfg").write_text(filled(FRAGMENTS[name], tmp_path))
    declaration = load(str(tmp_path / "config.json"))
    problems = errors_in(declaration.problems)
    assert problems
    assert not declaration.fragments
    for problem in problems:
        assert (problem.file or "").endswith("evil.cfg")
        assert problem.remedy


def test_fragments_may_have_conditions_inside_a_section(haproxy_binary: str) -> None:
    text = (
        "# first\n\ndefaults\n  mode http\nlisten a\n  bind unix@{dir}/a.sock\n"
        '  .if "defined(FC_UNSET)" # x\n   .if 0\n   .endif\n  nonsense\n'
        "  \\x2eelif 0\n  nonsense\n"
        "  '.else'\n  http-request deny\n  .endif\n  timeout connect 1s\n  timeout client 1s\n"
        "'backend' b\n  .if 0\n  nonsense\n  .endif\n"
    )
    with directory() as path:
        (path / "fragment.cfg").write_text(text)
        prepared = with_fragment(path, text.replace("{dir}", str(path)))
        assert prepared.config is not None
        verdict = validate(haproxy_binary, prepared.config.text, timeout=20)
        assert verdict.accepted, verdict.output


def with_fragment(path: Path, text: str) -> Rendered:
    (path / "services.d").mkdir()
    (path / "services.d" / "hand.cfg").write_text(text)
    settings = {
        "cluster": {"nameservers": ["127.0.0.1:53"]},
        "haproxy": {"log": None, "stats": None, "runtime_socket": f"{path}/admin.sock"},
    }
    (path / "config.json").write_text(json.dumps(settings))
    prepared = prepare(load(f"{path}/config.json"), {})
    assert not errors_in(prepared.problems), prepared.problems
    return prepared


def test_check_as_root_executes_nothing(haproxy_binary: str) -> None:
    """All texts in one directory: each is refused, and reported with its file."""
    with Frontend(haproxy_binary) as frontend:
        _, marker = lua_file(frontend.directory)
        frontend.environ["FC_KEYWORD"] = "global"
        frontend.settings["services"] = {"good": frontend.service("good", 8081)}
        files = set()
        for number, (name, text) in enumerate([*LINES.items(), *FRAGMENTS.items()]):
            content = filled(text, frontend.directory, number)
            if (name, text) in LINES.items():
                file = f"s{number}.json"
                service = frontend.service(f"s{number}", 8100 + number, extra_config=content)
                frontend.drop(file, {f"s{number}": service})
            else:
                file = f"f{number}.cfg"
                frontend.drop(file, content)
            files.add(file)
        frontend.write()
        done = frontend.run("check", "--json", check=False)
        assert done.returncode == 1
        assert not marker.exists()
        document = json.loads(done.stdout)
        named = {Path(problem["file"] or "").name for problem in document["problems"]}
        assert named >= files
        assert not any(problem["service"] == "good" for problem in document["problems"])


def test_the_daemon_under_load(haproxy_binary: str) -> None:
    """All texts at once, and a new service in the same batch: no request of another one fails."""
    with serving(haproxy_binary) as site:
        frontend = site.frontend
        _, marker = lua_file(frontend.directory)
        bad = set()
        for number, text in enumerate(LINES.values()):
            name = f"{'az'[number % 2]}{number}"
            content = filled(text, frontend.directory)
            site.declare(name, 8200 + number, extra_config=content)
            bad.add(name)
        for number, text in enumerate(FRAGMENTS.values()):
            site.put(f"m{number}.cfg", filled(text, frontend.directory, number))
        name, port = EXTRA
        disguise = "description fc-frontend:0000000000000000\n# fc-frontend:0000000000000000"
        site.declare(name, port, extra_config=disguise)
        frontend.until(lambda: frontend.ask(port) == f"{name}-1")

        def held() -> bool:
            listed = {unit for _, unit in site.held()}
            fragments = sum(unit.endswith(".cfg") for unit in listed)
            return bad <= listed and fragments == len(FRAGMENTS) and frontend.ready()

        frontend.until(held)
        site.still_serve()
        # A good change is still deployed.
        site.declare("docs", SERVICES["docs"], extra_config="http-response set-header x-new 1")
        frontend.until(lambda: "x-new" in frontend.haproxy_cfg.read_text() and frontend.ready())
        site.still_serve()
        assert not marker.exists()
        assert {proxy for proxy in proxies(frontend) if proxy != "MASTER"} == {
            *SERVICES,
            name,
            "fc-stats",
        }


def proxies(frontend: Frontend) -> set[str]:
    """Return the names of the proxies that HAProxy runs."""
    from fc_frontend.haproxy import runtime

    socket = frontend.settings["haproxy"]["runtime_socket"]
    rows = runtime.command(socket, "show stat").splitlines()
    return {row.split(",")[0] for row in rows if row and not row.startswith("#")}


def usable_line(chance: random.Random, *keywords: str) -> str:
    """Return a line that the loader accepts: one of `keywords`, then random words."""
    while True:
        line = f"{chance.choice(keywords)} {random_line(chance)}"
        # HAProxy 2.6 refuses a variable's default in a line that is longer than all lines before.
        has_default = "-d" in line or "-g" in line
        if line.isprintable() and not has_default and not any(raw_line_faults(line, Owner.SERVICE)):
            return line


def good_line(chance: random.Random, number: int) -> str:
    """Return a line that HAProxy accepts in a section, in a random spelling."""
    if chance.random() < 0.2:
        return f"\t{disguised('option', chance)} tcpka"
    return usable_line(chance, "#", f"{disguised('acl', chance)} a{number} str(x) -m str --")


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_accepted_lines_stay_in_their_section(seed: int, haproxy_binary: str) -> None:
    """HAProxy has exactly the declared proxies and servers, and our reader finds the same."""
    chance = random.Random(seed)
    services = {
        f"s{number}": {
            "pod_port": 80,
            "binds": [f"unix@{{dir}}/{number}.sock"],
            "server_options": f"{disguised('weight', chance)} {disguised('10', chance)}",
            "extra_config": [good_line(chance, n) for n in range(3)]
            + chance.choice([[], [chance.choice(list(LINES.values()))]]),
        }
        for number in range(40)
    }
    with directory() as path:
        prepared = declared(path, services)
        assert prepared.config is not None
        accepted = [service.spec.name for service in prepared.plan.services]
        assert 10 < len(accepted) < 30
        verdict = validate(haproxy_binary, prepared.config.text, timeout=20)
        assert verdict.accepted, verdict.output
        found = [(s.kind, s.name) for s in read_sections(prepared.config.text) if s.header]
        assert found[-len(accepted) :] == [("listen", name) for name in accepted]
        assert {kind for kind, _ in found[: -len(accepted)]} == {"global", "resolvers", "defaults"}
        assert parsed(haproxy_binary, path, prepared.config.text) == expected(prepared)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_nonsense_is_blamed_on_its_own_unit(seed: int, haproxy_binary: str) -> None:
    """Lines that only HAProxy can judge: its messages are assigned to the service that has them."""
    chance = random.Random(seed)
    services: dict[str, dict[str, Any]] = {}
    guilty = set()
    for number in range(40):
        name = f"s{number}"
        services[name] = {"pod_port": 80, "binds": [f"unix@{{dir}}/{number}.sock"]}
        if number % 4 == 0:
            services[name]["extra_config"] = usable_line(
                chance, "glo\\bal", "Global", "globals", "fron\\tend", "i.if", "no x", "\\.if"
            )
            guilty.add(name)
    with directory() as path:
        prepared = declared(path, services)
        assert prepared.config is not None
        judged = judge(Haproxy(binary=haproxy_binary), prepared.config)
        blamed = {problem.service for problem in errors_in(judged.problems)}
        accepted = {service.spec.name for service in prepared.plan.services}
        assert blamed == guilty & accepted
        assert len(blamed) == 10


MESSAGE = "[ALERT] (1) : config : parsing [haproxy.cfg:{line}] : x".replace(" ", "\\x20")
PRETENDING = {
    "message": f"bogus\\n{MESSAGE}",
    "far": f"bogus\\n{MESSAGE}".replace("{line}", "999999999"),
    "separator": f"bogus\\xe2\\x80\\xa8{MESSAGE}",
    "line": "use_backend [haproxy.cfg:{line}]",
    "server": "use_backend server\\x20'zz/pod1'",
    "proxy": "use_backend proxy\\x20\\x27zz\\x27",
    "list": "acl a http_auth(proxy\\x20\\x27zz\\x27)",
    "track": "server x 127.0.0.1:1 track [haproxy.cfg:{line}]/a",
}


@pytest.mark.parametrize("name", PRETENDING)
def test_words_that_pretend_to_be_haproxys_own(name: str, haproxy_binary: str) -> None:
    """HAProxy repeats words in its messages: they cannot blame a service, nor stop fc-frontend."""
    with directory() as path:
        services: dict[str, Any] = {
            "aa": {"pod_port": 80, "mode": "http", "extra_config": "option tcpka"},
            "zz": {"pod_port": 81, "mode": "http"},
        }
        plain = declared(path, services)
        assert plain.config is not None
        (line,) = [place.first for place in plain.config.places if place.unit.name == "zz"]
    with directory() as path:
        services["aa"]["extra_config"] = PRETENDING[name].replace("{line}", str(line))
        prepared = declared(path, services)
        assert prepared.config is not None
        judged = judge(Haproxy(binary=haproxy_binary), prepared.config)
        assert {problem.service for problem in errors_in(judged.problems)} == {"aa"}


def test_names_that_mean_something_to_haproxy(haproxy_binary: str) -> None:
    names = "from no default global listen rules if unless 0 1.2.3.4 FRONTEND cluster any".split()
    services = {
        name: {"service": "shop", "pod_port": 80, "binds": [f"unix@{{dir}}/{number}.sock"]}
        for number, name in enumerate(names)
    }
    with directory() as path:
        prepared = declared(path, services)
        assert prepared.config is not None
        assert parsed(haproxy_binary, path, prepared.config.text) == expected(prepared)
        assert len(prepared.plan.services) == len(names)


@pytest.mark.parametrize("piece", ["\n", " \n", "#\n", "a\n", "'a' ", '"$A', '"${A-}x', "\\x41"])
def test_large_texts_are_judged_in_linear_time(piece: str) -> None:
    assert not has_mark(piece * 1_000_000)
    text = piece * (100_000 // len(piece))
    for line in ("listen a\n" + text, "listen a\n" + text[:60_000].replace("\n", " ")):
        fragment, problems = fragment_of("/x/a.cfg", line)
        assert (fragment is None) == bool(problems)
        next(raw_line_faults(line, Owner.SERVICE))


# Assumptions of fc-frontend's own texts


@pytest.mark.parametrize(
    "line",
    [
        "# fc-frontend:0000000000000000",
        "description fc-frontend:0000000000000000",
        "description fc-frontend:0123456789abcdef",
        "acl a str(fc-frontend:0000000000000000)",
    ],
)
@pytest.mark.parametrize("where", ["extra_config", "global_extra", "fragment"])
def test_the_hash_is_found_whatever_units_hold(line: str, where: str, tmp_path: Path) -> None:
    service: dict[str, Any] = {"pod_port": 80}
    haproxy: dict[str, Any] = {}
    (tmp_path / "services.d").mkdir()
    if where == "fragment":
        (tmp_path / "services.d" / "a.cfg").write_text(f"listen a\n{line}\n")
    elif where == "global_extra":
        haproxy["global_extra"] = line if line.startswith("#") else f"# {line}"
    else:
        service["extra_config"] = line
    (tmp_path / "config.json").write_text(
        json.dumps(
            {
                "cluster": {"nameservers": ["127.0.0.1:53"]},
                "haproxy": haproxy,
                "services": {"shop": service},
            }
        )
    )
    prepared = prepare(load(str(tmp_path / "config.json")), {})
    assert not errors_in(prepared.problems), prepared.problems
    assert prepared.config is not None
    assert config_hash(prepared.config.text) == prepared.config.hash
    assert line.removeprefix("# ") in prepared.config.text
    assert config_hash(prepared.config.text.replace("pod_port", "x") + "#") is None


def rendered_with(path: Path, own: Mapping[str, str]) -> Config:
    """Return a configuration with the operator's own templates."""
    (path / "config.json").write_text(
        json.dumps(
            {
                "cluster": {"nameservers": ["127.0.0.1:53"]},
                "services": {"shop": {"pod_port": 80}, "web": {"pod_port": 81}},
            }
        )
    )
    plan = prepare(load(str(path / "config.json")), {}).plan
    return render(plan, templates(own))


def test_a_template_may_mention_the_hash_above_it(tmp_path: Path) -> None:
    main = templates({})["haproxy.cfg.j2"]
    config = rendered_with(
        tmp_path, {"haproxy.cfg.j2": "# fc-frontend: our notes, fc-frontend:0123\n" + main}
    )
    assert config_hash(config.text) == config.hash


OPERATORS = {
    "opened": {"service.cfg.j2": "listen {{ service.name }}\n.if 0\n"},
    "closed": {"service.cfg.j2": "listen {{ service.name }}\n.endif\n"},
    "headless": {"service.cfg.j2": "option tcpka\nlisten {{ service.name }}\n"},
    "around": {"service.cfg.j2": ".if 1\nlisten {{ service.name }}\n.endif\n"},
    "variable": {"service.cfg.j2": 'listen {{ service.name }}\n"$X"\n'},
    "comment": {"global.cfg.j2": "global\n# description {{ description }}\n"},
    "elsewhere": {"global.cfg.j2": "global\nlisten x\ndescription {{ description }}\n"},
    "twice": {"global.cfg.j2": "global\ndescription x {{ description }}\n"},
    "condition": {"defaults.cfg.j2": "defaults fc-tcp\n.if 0\ndefaults fc-http\n"},
    "end": {"stats.cfg.j2": "frontend fc-stats\n.if 0\n"},
    "begin": {"haproxy.cfg.j2": '.if 1\n{% include "global.cfg.j2" %}\n.endif\n'},
}


@pytest.mark.parametrize("name", OPERATORS)
def test_operators_templates_keep_sections_apart(name: str, tmp_path: Path) -> None:
    with pytest.raises(Refused) as caught:
        rendered_with(tmp_path, OPERATORS[name])
    problem = caught.value.problems[0]
    assert (problem.file or "").endswith(".j2")
    assert problem.service is None
