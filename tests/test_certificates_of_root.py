"""Certificates that only root may read: the daemon serves the copies of `certificates sync`."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from fc_frontend.doctor.findings import Result
from fc_frontend.doctor.judge.certificates import CertificateAccess, judge_certificates
from fc_frontend.doctor.observe.certificates import observe_certificates
from fc_frontend.errors import Problem, Severity
from fc_frontend.haproxy.certificates.bring import Keeper
from fc_frontend.haproxy.certificates.originals import Original, find
from fc_frontend.plan.model import Bind, CertificateSource, FrontendSpec, FrontendTls, Settings
from tests.conftest import binary_of
from tests.hostile.as_root import again_as_root
from tests.support.frontend import Frontend
from tests.support.issued import Authority, Issued
from tests.test_certificates_end_to_end import PORT, of, put, serial

WITHOUT_RIGHTS = ("setpriv", "--bounding-set=-all", "--inh-caps=-all")


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("issued"))


@pytest.fixture(scope="module")
def issued(authority: Authority) -> Issued:
    return authority.issue("shop.example.org")


@pytest.fixture
def frontend() -> Iterator[Frontend]:
    # The other HAProxy versions may be installed where only root may execute them.
    with Frontend(binary_of("2.6-debian")) as made:
        (made.directory / "live").mkdir(mode=0o700)
        tls = {"certificates": f"{made.directory}/live/*/"}
        made.settings["frontends"] = {"web": {"binds": f"{made.host}:{PORT}", "tls": tls}}
        made.settings["services"]["shop"] = {
            "frontend": "web",
            "hosts": ["shop.example.org"],
            "pod_port": 8080,
        }
        made.scale("shop", 1)
        yield made


def test_root_copies_what_the_daemon_may_not_read(
    request: pytest.FixtureRequest, frontend: Frontend, authority: Authority, issued: Issued
) -> None:
    if again_as_root(request):
        return
    renewed = authority.issue("shop.example.org")
    put(frontend, issued)
    for name in ("live", "archive"):
        os.chown(frontend.directory / name, 65534, 65534)
        (frontend.directory / name).chmod(0o700)
    frontend.launcher = WITHOUT_RIGHTS
    frontend.start()
    frontend.until(lambda: "certificates sync" in str(frontend.status()["problems"]))
    reloads = frontend.metric("fc_frontend_reloads_total")
    for each in (issued, renewed):
        put(frontend, each)
        assert "1 swapped" in frontend.run("certificates", "sync").stdout
        assert serial(frontend, authority) == of(each)
    assert frontend.metric("fc_frontend_reloads_total") == reloads
    frontend.stop_daemon()
    frontend.start()
    frontend.until(lambda: frontend.status()["certificates"])
    frontend.until(lambda: not frontend.status()["problems"])
    assert serial(frontend, authority) == of(renewed)


def test_doctor_sees_what_the_daemons_user_may_read(
    request: pytest.FixtureRequest, tmp_path: Path, issued: Issued
) -> None:
    if again_as_root(request):
        return
    state = tmp_path / "state"
    state.mkdir()
    os.chown(state, 65534, 65534)
    live = Path(tempfile.mkdtemp(dir="/tmp"))
    (live / "a.crt").write_bytes(issued.chain)
    (live / "a.key").write_bytes(issued.key)
    (live / "a.key").chmod(0o600)
    tls = FrontendTls(certificates=(CertificateSource(str(live)),))
    bind = Bind("ip", "127.0.0.1", 1)
    web = FrontendSpec(name="web", binds=(bind,), tls=tls)
    settings = Settings(state_directory=str(state))

    def readable() -> list[tuple[bool, bool]]:
        files, _, user = observe_certificates(settings, [web])
        assert user == "nobody"
        return [(each.is_readable, each.is_copied) for each in files]

    try:
        assert readable() == [(False, False)] * 2
        live.chmod(0o755)
        assert readable() == [(True, False), (False, False)]
        (live / "a.key").chmod(0o644)
        assert readable() == [(True, False), (True, False)]
        Keeper().bring(settings, [web])
        assert readable() == [(True, True), (True, True)]
        store = state / "fc-frontend-certificates"
        assert {path.stat().st_uid for path in store.iterdir()} == {65534}
    finally:
        shutil.rmtree(live)


def test_findings_about_who_may_read() -> None:
    def results(*files: CertificateAccess) -> list[Result]:
        return [each.result for each in judge_certificates(files, (), "x")]

    readable = CertificateAccess("/a", is_readable=True, is_copied=False)
    copied = CertificateAccess("/b", is_readable=False, is_copied=True)
    lost = CertificateAccess("/c", is_readable=False, is_copied=False)
    assert results() == []
    assert results(readable) == [Result.OK]
    assert results(readable, copied) == [Result.OK]
    assert results(readable, copied, lost) == [Result.OK, Result.PROBLEM]
    problem = Problem("it ends", "renew it", severity=Severity.WARNING)
    (found,) = judge_certificates((), (problem,), "x")
    assert (found.result, found.message) == (Result.WARNING, "it ends")


def names(directory: Path, *patterns: str) -> set[tuple[str, str | None]]:
    tls = FrontendTls(certificates=tuple(CertificateSource(f"{directory}/{p}") for p in patterns))
    found = find("web", tls)
    strip = len(str(directory)) + 1
    return {(each.chain[strip:], each.key and each.key[strip:]) for each in found.originals}


def test_files_directories_and_patterns_are_found(tmp_path: Path) -> None:
    for name in (
        *("live/a.org/fullchain.pem", "live/a.org/privkey.pem", "live/a.org/chain.pem"),
        *("live/b.org/fullchain.pem", "live/b.org/privkey.pem", "live/README"),
        *("live/.hidden/fullchain.pem", "live/.hidden/privkey.pem"),
        *("lego/c.org.crt", "lego/c.org.key", "lego/c.org.issuer.crt", "lego/c.org.json"),
        *("kube/tls.crt", "kube/tls.key"),
        *("one/d.pem", "one/e.pem", "one/e.key"),
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    certbot = {
        ("live/a.org/fullchain.pem", "live/a.org/privkey.pem"),
        ("live/b.org/fullchain.pem", "live/b.org/privkey.pem"),
    }
    assert names(tmp_path, "live/*/") == certbot
    assert names(tmp_path, "live") == certbot
    assert names(tmp_path, "live/*/fullchain.pem", "live/") == certbot
    assert names(tmp_path, "live/a*") == {min(certbot)}
    assert names(tmp_path, "lego") == {("lego/c.org.crt", "lego/c.org.key")}
    assert names(tmp_path, "kube") == {("kube/tls.crt", "kube/tls.key")}
    assert names(tmp_path, "one/*.pem") == {("one/d.pem", None), ("one/e.pem", "one/e.key")}
    assert names(tmp_path, "one/later.pem") == {("one/later.pem", None)}
    assert names(tmp_path, "none/*", "none", "live/[xyz]*/") == set()


def test_a_pattern_without_certificates_is_a_warning(tmp_path: Path) -> None:
    found = find("web", FrontendTls(certificates=(CertificateSource(f"{tmp_path}/live/*/"),)))
    (problem,) = found.problems
    assert problem.severity is Severity.WARNING
    assert (problem.service, problem.field) == ("web", "tls.certificates.0")
    pair = Original(f"{tmp_path}/x.crt", f"{tmp_path}/x.key")
    tls = FrontendTls(certificates=(CertificateSource(pair.chain, pair.key),))
    assert find("web", tls).originals == (pair,)


def test_no_message_has_a_key(frontend: Frontend, issued: Issued) -> None:
    """Problems with a certificate are reported without its content."""
    put(frontend, Issued(issued.leaf, issued.key + issued.chain[:90], issued.key))
    frontend.write()
    text = frontend.run("check", check=False)
    secret = issued.key.splitlines()[1].decode()
    assert "fullchain.pem" in text.stderr
    assert secret not in text.stdout + text.stderr
