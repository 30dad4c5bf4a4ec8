"""No reader fails unexpectedly on any bytes from files, DNS or HAProxy.

Samples of real inputs are damaged at random, from a seed that a failure reports.  A run is short;
`python -m tests.support.fuzz --count N` runs N inputs.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import time
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import quote

import dns.exception
import dns.message
import pytest
from prometheus_client.parser import text_string_to_metric_families

from fc_frontend.cli import diff as cli_diff
from fc_frontend.cli import doctor as cli_doctor
from fc_frontend.cli import explain as cli_explain
from fc_frontend.cli import resolve as cli_resolve
from fc_frontend.cli import status
from fc_frontend.cli.common import emit, print_problems
from fc_frontend.config.declare import declare
from fc_frontend.config.loader import Sources, read
from fc_frontend.config.running import dump_running, load_running
from fc_frontend.daemon.tracker import Tracker
from fc_frontend.discovery.scan import LENGTHS, RecordType, plain_records
from fc_frontend.discovery.store import load_answers
from fc_frontend.doctor.findings import Group
from fc_frontend.errors import Refused, Unavailable
from fc_frontend.explain.collect import held_from
from fc_frontend.explain.daemon import parse_status
from fc_frontend.explain.differences import Difference, Effect
from fc_frontend.explain.facts import Facts
from fc_frontend.explain.overview import Seen, overview
from fc_frontend.explain.steps import explain
from fc_frontend.haproxy import drain, history, hold
from fc_frontend.haproxy.master import parse_processes
from fc_frontend.haproxy.reload import parse_answer
from fc_frontend.haproxy.runtime import ServerState, hash_in, parse_servers, split_answers
from fc_frontend.haproxy.server_state import state_of_running
from fc_frontend.haproxy.validate import parse_messages
from fc_frontend.observe.log import configure, render_event
from fc_frontend.observe.metrics import Metrics
from fc_frontend.page.render import asked, missing_page, overview_page
from fc_frontend.page.values import board
from fc_frontend.pipeline import Base
from fc_frontend.plan.model import Answer, Kind
from fc_frontend.syntax.binds import read_listeners
from fc_frontend.syntax.files import named_files
from fc_frontend.syntax.names import defined_names, used_names
from fc_frontend.syntax.safe import refused_in_line
from fc_frontend.syntax.sections import read_sections
from fc_frontend.syntax.units import Owner, fragment_faults, option_fault, raw_line_faults
from fc_frontend.syntax.words import NotWords, split
from fc_frontend.text import one_line
from tests.support.prepared import prepared, running

INPUTS = int(os.environ.get("FC_FRONTEND_INPUTS", "300"))
SEED = int(os.environ.get("FC_FRONTEND_SEED", "1"))
ROOT = Path(__file__).parent.parent
EXAMPLES = sorted((ROOT / "contrib" / "examples").rglob("*.yaml"))
HOSTILE = (
    *(b"\0", b"\n", b"\r", b"\x1b[2J", b"\xff\xfe", b"\xe2\x80\xa8", b"%[env(PATH)]", b"${HOME}"),
    *(b'"', b"'", b"\\", b"#", b"..", b"/", b"*", b": ", b"- ", b"[", b"{", b"&a ", b"*a", b"!!"),
    *(b"\xe2\x80\xae", b"\xe2\x81\xa6", b"\xc2\x9b", b"e\xcc\x81", b"\xed\xa0\x80", b"__proto__"),
    *(b"null", b"~", b"-1", b"1e999", b".inf", b"0x7fffffffffffffff", b"listen evil\n", b"  "),
)


def damaged(generator: random.Random, sample: bytes) -> bytes:
    """Return the sample with some pieces deleted, duplicated, moved, overwritten or inserted."""
    data = bytearray(sample)
    for _ in range(generator.randint(1, 6)):
        at = generator.randrange(len(data) + 1)
        end = min(len(data), at + generator.randint(0, 12))
        match generator.randrange(6):
            case 0:
                del data[at:end]
            case 1:
                data[at:at] = generator.choice(HOSTILE)
            case 2:
                data[at:end] = generator.randbytes(end - at)
            case 3:
                data[at:at] = data[at:end] * generator.randint(1, 40)
            case 4:
                other = generator.randrange(len(data) + 1)
                data[at:at] = data[other : other + generator.randint(0, 60)]
            case _:
                if at < len(data):
                    data[at] ^= 1 << generator.randrange(8)
    return bytes(data)


def inputs(
    name: str, samples: list[bytes], check: Callable[[bytes], object], share: int = 1
) -> None:
    """Pass damaged samples to `check`; an exception fails the test and reports the input."""
    generator = random.Random(f"{SEED} {name}")
    count = max(20, INPUTS // share)
    began = time.monotonic()
    for number in range(count):
        data = damaged(generator, generator.choice(samples))
        try:
            check(data)
        except Exception as exc:
            raise AssertionError(f"seed {SEED}, input {number}: {data!r}") from exc
    print(f"{name}: {count} inputs in {time.monotonic() - began:.1f} s")


# Files


def test_declarations(tmp_path: Path) -> None:
    settings = tmp_path / "config.yaml"
    directory = tmp_path / "services.d"
    directory.mkdir()
    good = b"cluster: {nameservers: ['127.0.0.1:53']}\nhaproxy: {log: null}\n"
    settings.write_bytes(good)
    samples = [path.read_bytes() for path in EXAMPLES]
    samples += [
        b"services:\n  a: {pod_port: 80, binds: '127.0.0.1:80', extra_config: 'maxconn 1'}\n"
    ]
    samples += [json.dumps({"services": {"j": {"podPort": 80, "mode": "http"}}}).encode()]
    shop = directory / "shop.yaml"
    shop.write_text("services: {shop: {pod_port: 80, binds: '127.0.0.1:99'}}")
    base = running(prepared(settings))

    def check(data: bytes) -> None:
        name = "x.json" if data[:1] == b"{" else "x.yaml"
        for path in (settings, directory / name):
            path.write_bytes(data)
            judge(read(str(settings)), base)
            path.unlink() if path != settings else settings.write_bytes(good)

    inputs("declarations", samples, check, share=10)


def judge(sources: Sources, base: Base) -> None:
    """Check that nothing raises, that an accepted plan can be rendered and that shop is kept."""
    declaration = declare(sources)
    found = prepared(sources, base)
    if found.config is None:
        return
    text = found.config.text
    assert all(letter.isprintable() or letter in "\n\t" for letter in text)
    assert "listen shop" in text
    for problem in declaration.problems:
        json.dumps(problem.as_json())


def test_fragments(tmp_path: Path) -> None:
    settings = tmp_path / "config.yaml"
    settings.write_text("cluster: {nameservers: ['127.0.0.1:53']}\nhaproxy: {log: null}\n")
    (tmp_path / "services.d").mkdir()
    fragment = tmp_path / "services.d" / "raw.cfg"
    sample = b"frontend raw\n    bind 127.0.0.1:1\n    http-request deny if { path /x }\n"

    def check(data: bytes) -> None:
        fragment.write_bytes(data)
        found = prepared(settings)
        assert bool(found.plan.fragments) != bool(found.withheld)

    inputs("fragments", [sample], check, share=5)


def test_state_files(tmp_path: Path) -> None:
    settings = tmp_path / "config.yaml"
    settings.write_text("services: {a: {pod_port: 80}}")
    declared = dump_running(declare(read(str(settings))).raw)
    answers = json.dumps(
        {
            "version": 1,
            "answers": {"a b": {"kind": "srv", "reason": "r", "slots": 10,
                                "endpoints": [["10.1.0.1", 80, "x.y"]]}},
        }
    ).encode()  # fmt: skip
    record = drain.dump(drain.Drained(pods=frozenset({("a", "10.1.0.1")})))
    entry = json.dumps({"at": 1.0, "hash": "0" * 16, "outcome": "reloaded", "reasons": ["a"],
                        "services": 1, "slots": 1, "seconds": 0.1}).encode()  # fmt: skip
    held = json.dumps({"id": 1, "hash": "0" * 16, "since": 1.0, "by": "x"}).encode()
    file = tmp_path / "file"
    (tmp_path / "history").mkdir()

    def check(data: bytes) -> None:
        file.write_bytes(data)
        load_running(str(file))
        load_answers(str(file))
        with contextlib.suppress(ValueError):
            drain.parse(data)
        (tmp_path / "history" / "000001.json").write_bytes(data)
        history.entries(str(tmp_path))
        (tmp_path / "hold.json").write_bytes(data)
        hold.load(str(tmp_path))

    inputs("state files", [declared, answers, record, entry, held], check, share=2)


# DNS


@pytest.mark.parametrize("rdtype", ["A", "AAAA", "SRV"])
def test_answers_of_dns(rdtype: RecordType) -> None:
    query = dns.message.make_query("shop.default.svc.cluster.local", rdtype, use_edns=0)
    section = len(query.question[0].name.to_wire() or b"") + 4
    records = {
        "A": "\n".join(f"shop.default.svc.cluster.local. 5 IN A 10.1.0.{n}" for n in range(9)),
        "AAAA": "shop.default.svc.cluster.local. 5 IN AAAA fd00::1",
        "SRV": "shop.default.svc.cluster.local. 5 IN SRV 0 1 80 a.shop.default.svc.cluster.local.",
    }[rdtype]
    response = dns.message.from_text(
        f"id 1\nopcode QUERY\nrcode NOERROR\nflags QR AA\n;QUESTION\n"
        f"shop.default.svc.cluster.local. IN {rdtype}\n;ANSWER\n{records}\n"
    )
    response.use_edns(0)

    def check(data: bytes) -> None:
        found = plain_records(data, section, rdtype)
        try:
            message = dns.message.from_wire(data, ignore_trailing=True)
        except (dns.exception.DNSException, ValueError):
            assert found is None or not _is_of(data, section, query)
            return
        if found is None or not _is_of(data, section, query):
            return
        read = sorted(bytes(record.to_wire()) for rrset in message.answer for record in rrset)
        assert sorted(set(found)) == sorted(set(read))
        assert all(len(record) == LENGTHS[rdtype] for record in found)

    inputs(f"DNS {rdtype}", [response.to_wire(), response.to_wire()[:60]], check)


def _is_of(data: bytes, section: int, query: dns.message.Message) -> bool:
    """Return whether the answer repeats the question; the client ignores any other answer."""
    return data[12 : 12 + section] == query.to_wire()[12 : 12 + section]


# HAProxy's text


def test_haproxy_text() -> None:
    """Every reader accepts any text, and raw lines without a fault never begin a section."""
    samples = [path.read_bytes() for path in sorted(ROOT.glob("tests/golden/*/expected.cfg"))]
    lines = [line for sample in samples for line in sample.split(b"\n") if line.strip()]

    def check(data: bytes) -> None:
        text = data.decode("utf-8", "replace")
        found = list(read_sections(text))
        read_listeners(text)
        list(named_files(text))
        defined_names(text)
        used_names(text)
        list(fragment_faults(text))
        option_fault(text)
        if not list(raw_line_faults(text, Owner.SERVICE)):
            assert not [section for section in found if section.header]
        for line in text.split("\n"):
            with contextlib.suppress(NotWords):
                split(line)
            refused_in_line(line)

    inputs("HAProxy text", lines, check)


# What is printed


STATUS = json.dumps(
    {
        "version": 1, "fc_frontend": "0.1", "in_sync": False, "drifted": False, "held": None,
        "wanted_hash": "0" * 16, "running_hash": None, "take_over": None,
        "haproxy": "running",
        "certificates": [{"frontend": "web", "file": "/etc/x.pem", "names": ["shop.example.org"],
                          "not_before": 1.0, "not_after": 2e9, "serial": "1f", "algorithm": "RSA",
                          "fingerprint": "0" * 40, "is_default": False}],
        "frontends": [{"name": "web", "binds": ["127.0.0.1:443"], "redirect_binds": [], "tls": True,
                       "services": [{"service": "shop", "routes": ["a.test/"], "route_count": 1}]}],
        "problems": [{"message": "no such field", "remedy": "remove it", "severity": "error",
                      "file": "/etc/x.yaml", "line": 3, "column": 1, "service": "shop",
                      "field": "binds", "cause": "forbidden"}],
        "withheld": [{"kind": "service", "name": "shop", "effect": "not deployed",
                         "is_kept": False, "is_known": False, "problems": []}],
        "last_reload": {"at": 1.0, "reasons": ["service-added shop"], "outcome": "reloaded",
                        "seconds": 0.1},
        "services": [{"name": "shop", "service": "shop", "namespace": "default",
                      "binds": ["127.0.0.1:80"], "discovery": "headless", "reason": "pods",
                      "query": "shop.default.svc.cluster.local", "state": "ok",
                      "freshness": "fresh", "answer_age": 1.0, "file": "/etc/x.yaml",
                      "error": None, "remedy": "", "endpoints": ["10.1.0.1 80"],
                      "rejected": [], "slots": 10, "drained": [], "slots_short": 0,
                      "slots_scarce": False, "addresses_by": "resolver", "exceeded": None,
                      "is_current": True,
                      "servers": {"up": 1, "down": 0, "drained": 0, "maintenance": 0, "free": 9,
                                  "standby": 0}}],
    }
)  # fmt: skip


def test_every_output_format() -> None:
    """Output is UTF-8 without control characters, whatever names and messages contain."""

    def check(data: bytes) -> None:
        # Damaged names in valid JSON: surrogates appear as escapes of single halves.
        text = data.decode("utf-8", "surrogateescape")
        document = json.loads(STATUS)
        document["services"][0].update(name=text, reason=text, error=text, binds=[text])
        document["problems"][0].update(message=text, remedy=text, file=text, service=text)
        document["withheld"][0].update(name=text, effect=text)
        document["last_reload"]["reasons"] = [text]
        document["certificates"][0].update(file=text, names=[text])
        document["frontends"][0].update(name=text, binds=[text])
        document["frontends"][0]["services"][0].update(service=text, routes=[text])
        daemon = parse_status(document)
        found = overview(
            Seen(
                daemon=daemon,
                services=daemon.services,
                withheld=daemon.withheld,
                problems=daemon.problems,
                held_id=1,
                held_by=text,
            )
        )
        written = io.BytesIO()
        with contextlib.redirect_stdout(io.TextIOWrapper(written, "utf-8", newline="")) as output:
            status.print_status(found, is_wide=False)
            status.print_status(found, is_wide=True)
            status.print_findings(found)
            status.print_nagios(found)
            emit(found.as_json())
            emit({"problems": [problem.as_json() for problem in daemon.problems]})
            print(render_event("problem", {"said": text, "service": text}))
            for problem in daemon.problems:
                print(one_line(problem))
            output.flush()
        shown = written.getvalue().decode("utf-8")
        assert all(letter.isprintable() for letter in shown.replace("\n", "")), shown

    samples = [b"shop", b"the pods of \xc3\xa9 are gone", b"a|b=1", b"<b>x</b>", b"x" * 3000]
    inputs("outputs", samples, check, share=2)


def test_names_from_files_to_every_output(tmp_path: Path) -> None:
    """Commands, pages, metrics and the log are well-formed for any names of services and files."""
    (tmp_path / "config.yaml").write_text("cluster: {nameservers: ['127.0.0.1:53']}\n")
    directory = tmp_path / "services.d"
    directory.mkdir()
    (directory / "innocent.yaml").write_text("services: {innocent: {pod_port: 80}}")
    log, metrics = io.StringIO(), Metrics()
    tracker = Tracker(configure(log), metrics)

    def check(data: bytes) -> None:
        name = data.decode("utf-8", "surrogateescape")
        file = Path(os.fsdecode(os.fsencode(directory) + b"/" + _as_file_name(data)))
        file.write_text(json.dumps({"services": {name: {"pod_port": 80, name: 1}}}))
        prepared_now = prepared(tmp_path / "config.yaml")
        file.unlink()
        assert "innocent" in {service.spec.name for service in prepared_now.plan.services}
        withheld, problems = prepared_now.withheld, prepared_now.problems
        tracker.become(replace(tracker.state, withheld=withheld, problems=problems))
        metrics.planned(prepared_now.plan, {})
        text = metrics.exposition(0.0).decode()
        families = list(text_string_to_metric_families(text))
        assert {s.labels.get("service") for f in families for s in f.samples} >= {"innocent"}
        held = tuple(map(held_from, prepared_now.withheld))
        found = overview(Seen(withheld=held, problems=prepared_now.problems))
        of_all = board(
            found, rates=None, traffic_problem=None, seconds=None, changes=(), queries={},
            host="vm", at=0.0,
        )  # fmt: skip
        for page in (
            overview_page(of_all, asked(f"q={quote(data)}")),
            missing_page(of_all, name, None),
        ):
            HTMLParser().feed(page.decode())
            assert b"<script>x" not in page
        facts = Facts(name=name, withheld=held, refused=prepared_now.problems)
        answer = Answer(kind=Kind.HEADLESS, reason=name, error=name, remedy=name, rejected=(name,))
        change = Difference(what="service", name=name, how="changed", effect=Effect.RELOAD,
                        because=name, binds=(f"+{name}",), lines=(f"+{name}",))  # fmt: skip
        printed = io.BytesIO()
        with contextlib.redirect_stdout(io.TextIOWrapper(printed, "utf-8", newline="")) as output:
            print_problems(prepared_now.problems, to_stderr=False)
            explanation = explain(facts)
            cli_explain.print_explanation(explanation, facts.state.value)
            emit(cli_explain.explanation_document(facts, explanation))
            cli_resolve.print_answers({name: answer})
            emit(cli_resolve.answers_document({name: answer}, prepared_now.problems))
            cli_diff.print_changes((change,))
            emit({"changes": [change.as_json()]})
            cli_doctor.print_findings([Group(name).problem(name, name, name)])
            emit({"withheld": [each.as_json() for each in prepared_now.withheld]})
            output.flush()
        shown = printed.getvalue().decode() + log.getvalue()
        assert all(letter.isprintable() for letter in shown.replace("\n", "")), shown
        log.seek(0)
        log.truncate()

    samples = [
        b"shop",
        b"\xc3\xa9t\xc3\xa9",
        b"a|b=1",
        b"<script>x</script>",
        b"x" * 3000,
        b"{{ 7*7 }}",
    ]
    inputs("names", samples, check, share=10)


def _as_file_name(data: bytes) -> bytes:
    name = data.replace(b"/", b"").replace(b"\0", b"")[:240]
    return b"x" + name + b".json"


# HAProxy


SERVERS = (  # in HAProxy's format
    b"1\n# be_id be_name srv_id srv_name srv_addr srv_op_state srv_admin_state srv_uweight "
    b"srv_iweight srv_time_since_last_change srv_check_status srv_check_result srv_check_health "
    b"srv_check_state srv_agent_state bk_f_forced_id srv_f_forced_id srv_fqdn srv_port srvrecord\n"
    b"2 shop 1 pod1 10.1.0.1 2 0 1 1 9 6 3 4 6 0 0 0 shop.default.svc.cluster.local 8080 -\n"
    b"2 shop 2 pod2 - 0 32 1 1 9 1 0 0 14 0 0 0 - 0 -\n"
)
PROCESSES = (
    b"#<PID> <type> <reloads> <uptime> <version>\n12 master 3 [failed: 0] 0d00h01m07s 2.6.12\n"
    b"# workers\n15 worker 0 0d00h00m17s 2.6.12\n# old workers\n14 worker 1 0d00h01m00s 2.6.12\n"
)
MESSAGES = (
    b"[NOTICE]   (12) : haproxy version is 2.6.12\n"
    b"[ALERT]    (12) : config : parsing [haproxy.cfg:9] : unknown keyword 'x' in 'listen'\n"
    b"[ALERT]    (12) : config : Proxy 'shop': unable to find required use_backend: 'nowhere'.\n"
    b"[WARNING]  (12) : config : server 'shop/pod1' : something\n   | and more\n"
)


def test_what_haproxy_says() -> None:
    def check(data: bytes) -> None:
        text = data.decode("utf-8", "replace")
        for reader in (parse_servers, parse_processes):
            with contextlib.suppress(Unavailable, Refused):
                result = reader("socket", text)
                if reader is parse_servers:
                    known: tuple[ServerState, ...] = result  # type: ignore[assignment]
                    sections = "".join(
                        f"listen {server.proxy}\n    server-template pod 20 shop:80 check\n"
                        for server in known
                    )
                    state = state_of_running(sections, sections, known)
                    lines = state.splitlines()
                    assert lines[0] == "1"
                    assert all(len(line.split()) == 20 for line in lines[1:])
        for message in parse_messages(text):
            assert message.level in ("alert", "warning", "notice")
        parse_answer(text)
        split_answers(text)
        hash_in({"description": text})

    samples = [
        SERVERS,
        PROCESSES,
        MESSAGES,
        b"Success=0\n--\n" + MESSAGES,
        b"\nNo such server.\n\n",
    ]
    inputs("HAProxy", samples, check)
