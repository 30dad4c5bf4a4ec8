"""Cases under tests/golden: haproxy.cfg rendered from declarations and DNS answers.

HAProxy must accept each rendered file.  Each case has config.yaml and expected.cfg, and may have
services.d/ and answers.json.  With UPDATE_GOLDEN=1 in the environment, expected.cfg is rewritten;
HAProxy checks it in that case too.
"""

from __future__ import annotations

import json
import os
from ipaddress import ip_address
from pathlib import Path

import pytest

from fc_frontend.config.declare import load
from fc_frontend.errors import errors_in
from fc_frontend.haproxy.validate import validate
from fc_frontend.plan.model import Answer, Endpoint, Freshness, Kind
from fc_frontend.render.config import Config, assemble, config_hash, sections_in
from tests.support.prepared import Rendered, prepare

CASES = sorted(path.parent for path in Path(__file__).parent.glob("golden/*/config.yaml"))


def prepared(case: Path) -> Rendered:
    answers = case / "answers.json"
    given = json.loads(answers.read_text()) if answers.exists() else {}
    resolution = {
        name: Answer(
            kind=Kind(entry["kind"]),
            reason="as cluster DNS said",
            endpoints=tuple(
                Endpoint(str(ip_address(address)), port) for address, port in entry["endpoints"]
            ),
            freshness=Freshness.FRESH,
            slots=entry.get("slots", 0),
        )
        for name, entry in given.items()
    }
    return prepare(load(str(case / "config.yaml")), resolution)


def rendered(case: Path) -> Config:
    result = prepared(case)
    assert not errors_in(result.problems)
    assert result.config is not None
    return result.config


def test_there_are_cases() -> None:
    assert len(CASES) >= 8


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_text_is_as_expected_and_accepted(case: Path, haproxy_binary: str) -> None:
    config = rendered(case)
    verdict = validate(haproxy_binary, config.text, timeout=20)
    assert verdict.accepted, verdict.output
    unexpected = [m.text for m in verdict.warnings if "server state file" not in m.text]
    assert not unexpected
    expected = case / "expected.cfg"
    if os.environ.get("UPDATE_GOLDEN"):
        expected.write_text(config.text)
    assert config.text == expected.read_text()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_source_map_covers_each_section(case: Path) -> None:
    config = rendered(case)
    lines = config.text.split("\n")
    for place in config.places:
        name = place.unit.name
        inside = lines[place.first - 1 : place.end - 1]
        assert any(
            line in (f"listen {name} from fc-tcp", f"listen {name} from fc-http")
            or line == f"defaults fc-fragment-{name} from fc-tcp"
            for line in inside
        )
        assert lines[place.first - 2] == f"# fc-frontend unit: {place.unit}"
        assert config.unit_at(place.first) == place.unit
        assert config.section_text(name) == "\n".join(inside)
    assert config.unit_at(1) is None


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_sections_can_be_read_from_the_text(case: Path) -> None:
    config = rendered(case)
    assert sections_in(config.text) == config.sections
    assert assemble(sections_in(config.text)) == config


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_text_has_its_own_hash_and_shows_edits(case: Path) -> None:
    config = rendered(case)
    assert config_hash(config.text) == config.hash
    assert rendered(case) == config
    assert config_hash(config.text.replace("balance", "balance ", 1) + "#") is None
