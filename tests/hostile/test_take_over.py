"""A haproxy.cfg that fc-frontend did not write: replaced only with consent, and never lost."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import stat
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from fc_frontend.config.templates import templates
from fc_frontend.demo.load import Load
from fc_frontend.errors import Unavailable
from fc_frontend.files import Attributes, Content
from fc_frontend.haproxy import consent, history, take_over
from fc_frontend.haproxy.consent import Consent
from fc_frontend.haproxy.foreign import FileOrigin, OwnConfigs, ServingWorker, decide, look_at
from fc_frontend.haproxy.history import BEFORE_US, Entry, Kept
from fc_frontend.haproxy.master import show_proc
from fc_frontend.haproxy.rollback import choice
from fc_frontend.haproxy.take_over import NeedsConsent
from fc_frontend.migrate.lost import lost_settings
from fc_frontend.plan.model import Haproxy, Plan, Settings
from fc_frontend.render.render import render
from tests.conftest import RealHaproxy, binary_of
from tests.hostile.as_root import DAEMON
from tests.support.frontend import Frontend
from tests.test_haproxy_install import as_nobody

OURS = render(Plan(settings=Settings(), services=()), templates({})).text
KNOWN = "0123456789abcdef"
SITE = "defaults\n  mode http\nfrontend site\n  bind :80\n  bind :443\n  default_backend pods\n"
EDITED = f"global\n  description fc-frontend:{KNOWN}\n{SITE}"

DEBIAN = """global
	log /dev/log	local0
	log /dev/log	local1 notice
	chroot /var/lib/haproxy
	stats socket /run/haproxy/admin.sock mode 660 level admin
	stats timeout 30s
	user haproxy
	group haproxy
	daemon

	# Default SSL material locations
	ca-base /etc/ssl/certs
	crt-base /etc/ssl/private

	# See: https://ssl-config.mozilla.org/#server=haproxy&server-version=2.0.3&config=intermediate
        ssl-default-bind-ciphers ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-RSA-AES128-GCM-SHA256
        ssl-default-bind-ciphersuites TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384
        ssl-default-bind-options ssl-min-ver TLSv1.2 no-tls-tickets

defaults
	log	global
	mode	http
	option	httplog
	option	dontlognull
        timeout connect 5000
        timeout client  50000
        timeout server  50000
	errorfile 400 /etc/haproxy/errors/400.http
	errorfile 403 /etc/haproxy/errors/403.http
	errorfile 408 /etc/haproxy/errors/408.http
	errorfile 500 /etc/haproxy/errors/500.http
	errorfile 502 /etc/haproxy/errors/502.http
	errorfile 503 /etc/haproxy/errors/503.http
	errorfile 504 /etc/haproxy/errors/504.http
"""
"""/etc/haproxy/haproxy.cfg of Debian's package, with shorter lists of ciphers."""


HERE = OwnConfigs(lambda digest: digest == KNOWN, lambda: frozenset((("listen", "shop"),)))
OUR_MARK = "# fc-frontend unit: service shop\n"

# Kinds of files

FILES: dict[str, tuple[bytes | str | None, FileOrigin]] = {
    "missing": (None, FileOrigin.NONE),
    "empty": ("", FileOrigin.NONE),
    "blank": (" \n\t\n", FileOrigin.NONE),
    "ours": (OURS, FileOrigin.OURS),
    "ours, edited": (EDITED, FileOrigin.EDITED),
    "ours, edited, digest quoted": (
        EDITED.replace("description", '"descrip"tion'),
        FileOrigin.EDITED,
    ),
    "Debian's": (DEBIAN, FileOrigin.BARE),
    "comments only": ("# listen web\n#\tbind :80\n", FileOrigin.BARE),
    "a userlist": ("userlist them\n  user me password x\n", FileOrigin.BARE),
    "a site": (SITE, FileOrigin.FOREIGN),
    "a site, with DOS line ends": (SITE.replace("\n", "\r\n"), FileOrigin.FOREIGN),
    "a site, without a last line feed": (DEBIAN + "listen web\n  bind :80", FileOrigin.FOREIGN),
    "statistics only": (DEBIAN + "listen stats\n  bind :8000\n", FileOrigin.FOREIGN),
    "backend": (DEBIAN + "backend one\n", FileOrigin.FOREIGN),
    "quoted keyword": (DEBIAN + '"frontend" web\n bind :80\n', FileOrigin.FOREIGN),
    "keyword quoted within": (DEBIAN + "li'sten' web\n bind :80\n", FileOrigin.FOREIGN),
    "keyword with escapes": (DEBIAN + "\\x6cisten web\n bind :80\n", FileOrigin.FOREIGN),
    "indented keyword": (DEBIAN + "   \t listen web\n bind :80\n", FileOrigin.FOREIGN),
    "within a condition": (DEBIAN + ".if streq(a,b)\nlisten web\n.endif\n", FileOrigin.FOREIGN),
    "syslog forwarder": ("log-forward logs\n  dgram-bind :514\n", FileOrigin.FOREIGN),
    "program": ("program agent\n  command /bin/agent\n", FileOrigin.FOREIGN),
    "keyword from a variable": (DEBIAN + '"${WHAT}" web\n  bind :80\n', FileOrigin.UNREADABLE),
    "our comment on another's site": (
        f"# Written by fc-frontend. Changes made here are lost.\n{SITE}",
        FileOrigin.FOREIGN,
    ),
    "our digest in another's comment": (f"# once fc-frontend:{KNOWN}\n{SITE}", FileOrigin.FOREIGN),
    "our digest in another section": (
        SITE + f"  description fc-frontend:{KNOWN}\n",
        FileOrigin.FOREIGN,
    ),
    "our text without its digest": (
        f"global\n{OUR_MARK}listen shop\n  bind :80\n",
        FileOrigin.EDITED,
    ),
    "our text with another's proxy": (
        f"global\n{OUR_MARK}listen shop\n  bind :80\n{SITE}",
        FileOrigin.FOREIGN,
    ),
    "our comment on a name that is not ours": (
        f"{OUR_MARK.replace('shop', 'cart')}listen cart\n  bind :80\n",
        FileOrigin.FOREIGN,
    ),
    "our name without our comment": ("listen shop\n  bind :80\n", FileOrigin.FOREIGN),
    "a digest that we never wrote": (EDITED.replace(KNOWN, "f" * 16), FileOrigin.FOREIGN),
    "a digest that a later description hides": (
        EDITED + "global\n  description site\n",
        FileOrigin.FOREIGN,
    ),
    "YAML": ("services:\n  shop: {}\n", FileOrigin.UNREADABLE),
    "prose": ("this is not a configuration\n", FileOrigin.UNREADABLE),
    "an open quote": (DEBIAN + '  log "/dev/log\n', FileOrigin.UNREADABLE),
    "NUL": (b"global\n\0\n", FileOrigin.UNREADABLE),
    "UTF-16": (SITE.encode("utf-16"), FileOrigin.UNREADABLE),
    "binary": (bytes(range(256)) * 10, FileOrigin.UNREADABLE),
    "Latin-1": (f"# caf\xe9\n{SITE}".encode("latin-1"), FileOrigin.FOREIGN),
    "a scope": ("[scope]\nlisten\n", FileOrigin.FOREIGN),
    "a scope alone": ("[scope]\nglobal\n", FileOrigin.UNREADABLE),
}


@pytest.mark.parametrize(("content", "origin"), FILES.values(), ids=FILES)
def test_a_file_is_told_by_what_haproxy_reads(
    content: bytes | str | None, origin: FileOrigin
) -> None:
    data = content.encode() if isinstance(content, str) else content
    assert look_at(data, HERE).origin is origin


def test_our_text_is_edited_however_little_was_changed() -> None:
    assert look_at(OURS.encode(), OwnConfigs()).origin is FileOrigin.OURS
    digest = history.own_hash(OURS)
    for changed in (OURS + "\n", OURS + "# \xe9\n", OURS.replace("1h", "2h")):
        found = look_at(changed.encode("latin-1"), OwnConfigs(lambda one: one == digest))
        assert found.origin is FileOrigin.EDITED


def test_proxies_are_named_with_their_binds() -> None:
    found = look_at(SITE.encode(), OwnConfigs())
    (proxy,) = found.proxies
    assert str(proxy) == "frontend site on :80, :443"
    evil = look_at(b"listen \x1b[31m\n  bind :1\x07\n", OwnConfigs())
    assert str(evil.proxies[0]).isprintable()


def test_who_may_be_served_decides() -> None:
    none, ours, others = (
        ServingWorker(),
        ServingWorker(is_ours=True),
        ServingWorker(proxies=("site",)),
    )
    by_origin = {
        FileOrigin.NONE: look_at(None, OwnConfigs()),
        FileOrigin.OURS: look_at(OURS.encode(), OwnConfigs()),
        FileOrigin.EDITED: look_at(EDITED.encode(), HERE),
        FileOrigin.BARE: look_at(DEBIAN.encode(), OwnConfigs()),
        FileOrigin.FOREIGN: look_at(SITE.encode(), OwnConfigs()),
        FileOrigin.UNREADABLE: look_at(b"prose\n", OwnConfigs()),
    }
    free = {FileOrigin.NONE, FileOrigin.OURS, FileOrigin.EDITED, FileOrigin.BARE}
    for worker, allowed in (
        (none, free),
        (ours, free),
        # The worker's file was moved away, or it has more than one.
        (others, {FileOrigin.OURS, FileOrigin.EDITED}),
    ):
        for origin, one in by_origin.items():
            assert decide(one, worker, ()).allowed is (origin in allowed), (origin, worker)
            assert decide(one, worker, (), always=True).allowed
            needed = decide(one, worker, ()).needed
            assert decide(one, worker, needed).allowed
            assert not needed or not decide(one, worker, ["0" * 64]).allowed
    unreadable = by_origin[FileOrigin.UNREADABLE]
    # A file that HAProxy refuses serves nothing while HAProxy runs fc-frontend's own.
    assert decide(unreadable, ours, (), is_refused=True).allowed
    assert not decide(unreadable, none, (), is_refused=True).allowed
    kept = {origin: decide(one, none, ()).kept for origin, one in by_origin.items()}
    assert kept == {
        FileOrigin.NONE: None,
        FileOrigin.OURS: None,
        FileOrigin.EDITED: Kept.EDITED,
        FileOrigin.BARE: Kept.FOREIGN,
        FileOrigin.FOREIGN: Kept.FOREIGN,
        FileOrigin.UNREADABLE: Kept.FOREIGN,
    }


def test_what_debians_file_had_and_ours_lacks_is_reported_with_the_settings() -> None:
    haproxy = Haproxy(user="haproxy", group="haproxy")
    lost = lost_settings(DEBIAN, haproxy, render_with(haproxy))
    assert [problem.field for problem in lost] == [
        "haproxy.global_extra",
        "haproxy.defaults_extra",
    ]
    for word in ("chroot", "ca-base", "crt-base", "ssl-default-bind-ciphers ", "local1 notice"):
        assert word in lost[0].message
    for word in ("daemon", "ssl-default-bind-options", "stats"):
        assert word not in lost[0].message
    assert "errorfile 503 /etc/haproxy/errors/503.http" in lost[1].message
    (account, *_) = lost_settings(DEBIAN, Haproxy(), render_with(Haproxy()))
    assert account.remedy == "set haproxy.user: haproxy and haproxy.group: haproxy"
    extra = tuple(line.strip() for line in DEBIAN.splitlines()[1:] if line.strip())[:4]
    haproxy = replace(haproxy, global_extra=(*extra, "lua-load /x.lua"))
    assert not lost_settings("global\n lua-load /x.lua\n", haproxy, render_with(haproxy))
    (lua,) = lost_settings("global\n lua-load /x.lua\n", Haproxy(), OURS)
    assert "lua-load /x.lua" in lua.message


def render_with(haproxy: Haproxy) -> str:
    plan = Plan(settings=Settings(haproxy=haproxy), services=())
    return render(plan, templates({})).text


# Kept texts


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    haproxy = Haproxy(
        binary=binary_of("2.6-debian"),
        config_file=str(tmp_path / "haproxy.cfg"),
        runtime_socket=str(tmp_path / "admin.sock"),
        master_socket=str(tmp_path / "master.sock"),
    )
    return Settings(haproxy=haproxy, state_directory=str(tmp_path / "state"))


def always(settings: Settings) -> Settings:
    return replace(settings, haproxy=replace(settings.haproxy, take_over="always"))


def put(settings: Settings, text: str, mode: int = 0o644) -> Path:
    path = Path(settings.haproxy.config_file)
    path.write_text(text)
    path.chmod(mode)
    return path


def install(settings: Settings, text: str = OURS) -> take_over.Replaced:
    return take_over.install(settings, text.encode(), ServingWorker())


def void(_: object) -> None:
    """Do nothing."""


def agree(settings: Settings) -> None:
    """Consent to the replacement of the present haproxy.cfg."""
    needed = take_over.present(settings).decision.needed
    Path(settings.state_directory).mkdir(exist_ok=True)
    consent.give(settings.state_directory, Consent(needed, "me"))


def texts(settings: Settings) -> dict[int, str]:
    entries = history.entries(settings.state_directory)
    return {entry.id: history.text(settings.state_directory, entry) for entry in entries}


def test_nothing_is_overwritten_without_consent_and_consent_is_to_one_text(
    settings: Settings,
) -> None:
    path = put(settings, SITE, 0o600)
    with pytest.raises(NeedsConsent) as refused:
        install(settings)
    assert "frontend site on :80, :443" in refused.value.problem.message
    assert "apply --take-over" in refused.value.problem.remedy
    agree(settings)
    put(settings, SITE + "# changed since\n", 0o600)
    with pytest.raises(NeedsConsent):
        install(settings)
    assert path.read_text() == SITE + "# changed since\n"
    put(settings, SITE, 0o600)
    replaced = install(settings)
    assert replaced.entry is not None and replaced.entry.id == BEFORE_US
    assert path.read_text() == OURS and stat.S_IMODE(path.stat().st_mode) == 0o600
    assert texts(settings) == {0: SITE}
    copy = Path(settings.state_directory) / "history" / "000000.cfg"
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600
    # Consent applies once: if the file is put back by hand, it is required again.
    assert take_over.finish(settings, OURS.encode()) == ()
    put(settings, SITE, 0o600)
    with pytest.raises(NeedsConsent):
        install(settings)


def test_each_text_that_is_overwritten_is_kept_once(settings: Settings) -> None:
    settings = always(settings)
    state = settings.state_directory
    digest = history.own_hash(OURS)
    history.record(state, Entry(at=1.0, hash=str(digest), outcome="reloaded"), OURS)
    edited = OURS.replace("1h", "2h")
    other = SITE.replace("site", "other")
    for text in (DEBIAN, SITE, DEBIAN, edited, other, edited, "caf\xe9\n", OURS, ""):
        put(settings, text)
        install(settings)
        assert Path(settings.haproxy.config_file).read_text() == OURS
    assert texts(settings) == {0: DEBIAN, 1: OURS, 2: SITE, 3: edited, 4: other, 5: "caf\xe9\n"}
    known = {entry.id: entry for entry in history.entries(state)}
    assert known[0].reasons == ("before fc-frontend",)
    assert [known[number].outcome for number in (0, 2, 3)] == ["foreign", "foreign", "edited"]
    # Without a number, rollback chooses a text that has served: not a file without a proxy, nor
    # an edit.
    assert choice((known[0], known[1]), digest, None, 0).id == 0
    assert choice(tuple(known.values()), None, None, None).id == 4


def test_entry_0_stays_whatever_comes(settings: Settings) -> None:
    settings = always(settings)
    put(settings, SITE)
    install(settings)
    for number in range(2 * history.MOST_ENTRIES):
        put(settings, SITE.replace("site", f"site{number}"))
        install(settings)
        history.record(
            settings.state_directory, Entry(at=1.0, hash=f"{number:016x}", outcome="reloaded"), ""
        )
    known = history.entries(settings.state_directory)
    assert history.text(settings.state_directory, known[0]) == SITE
    assert len(known) <= history.MOST_ENTRIES
    assert sum(entry.outcome == Kept.FOREIGN for entry in known) == 6


def test_what_changes_meanwhile_is_judged_and_kept_again(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An editor saves between the inspection of the file and its replacement."""
    keep = history.keep
    later = [SITE.replace("site", "later")]

    def interrupted(*words: object, **fields: object) -> Entry:
        entry = keep(*words, **fields)  # type: ignore[arg-type]
        if later:
            put(settings, later.pop())
        return entry

    monkeypatch.setattr(history, "keep", interrupted)
    path = put(settings, SITE)
    agree(settings)
    with pytest.raises(NeedsConsent, match="frontend later"):
        install(settings)
    assert "frontend later" in path.read_text()
    later.append(SITE.replace("site", "latest"))
    install(always(settings))
    assert path.read_text() == OURS
    assert set(texts(settings).values()) == {
        SITE.replace("site", name) for name in ("site", "later", "latest")
    }
    # A file that never stops changing is not replaced.
    put(settings, SITE)
    monkeypatch.setattr(history, "keep", lambda *_, **__: put(settings, os.urandom(9).hex()))
    with pytest.raises(Unavailable, match="changes all the time"):
        install(always(settings))


def test_what_cannot_be_kept_is_not_overwritten(settings: Settings) -> None:
    state = Path(settings.state_directory)
    state.mkdir()
    (state / "history").write_text("in the way")
    for text in (SITE, DEBIAN, EDITED):
        path = put(settings, text)
        with pytest.raises(Unavailable):
            install(always(settings))
        assert path.read_text() == text
    # fc-frontend's own text can be rendered again.
    path = put(settings, OURS)
    install(settings, OURS + "\n")
    assert path.read_text() == OURS + "\n"


def test_what_was_ours_before_the_state_was_lost_can_be_gone_back_to(settings: Settings) -> None:
    put(settings, OURS)
    other = render_with(Haproxy(hard_stop_after=60.0))
    install(settings, other)
    assert texts(settings) == {1: OURS}
    assert history.entries(settings.state_directory)[0].has_served
    # A file from another frontend, put here by hand: kept, but never chosen by default.
    another = render_with(Haproxy(hard_stop_after=120.0))
    put(settings, another)
    install(settings, other)
    assert texts(settings) == {1: OURS, 2: another}
    assert not history.entries(settings.state_directory)[1].has_served


def test_a_file_that_may_not_be_read_is_not_overwritten(settings: Settings) -> None:
    path = put(settings, SITE, 0o600)
    path.parent.chmod(0o777)
    for parent in path.parents[:4]:
        if parent != Path("/tmp"):
            parent.chmod(parent.stat().st_mode | 0o5)
    (path.parent / "state").mkdir()
    (path.parent / "state").chmod(0o777)
    if os.geteuid() == 0:
        said = as_nobody(lambda: void(install(always(settings))))
        assert "cannot be read: Permission denied" in said
    assert path.read_text() == SITE


@pytest.mark.parametrize("kind", ["directory", "pipe", "link to nothing", "link to a store"])
def test_what_is_no_file_of_its_own(settings: Settings, kind: str) -> None:
    path = Path(settings.haproxy.config_file)
    store = path.with_name("store.cfg")
    store.write_text(SITE)
    store.chmod(0o444)
    makers: dict[str, Callable[[], None]] = {
        "directory": path.mkdir,
        "pipe": lambda: os.mkfifo(path),
        "link to nothing": lambda: path.symlink_to("later.cfg"),
        "link to a store": lambda: path.symlink_to(store),
    }
    makers[kind]()
    if kind == "link to nothing":
        install(settings)
        assert path.is_symlink() and path.read_text() == OURS
        return
    with pytest.raises(Unavailable):
        install(always(settings))
    assert store.read_text() == SITE
    assert path.is_symlink() is (kind == "link to a store")


def test_a_failed_reload_puts_the_very_file_back_unless_others_have_written(
    settings: Settings,
) -> None:
    settings = always(settings)
    path = put(settings, SITE, 0o604)
    replaced = install(settings)
    take_over.undo(settings, replaced, OURS.encode())
    assert path.read_text() == SITE and stat.S_IMODE(path.stat().st_mode) == 0o604
    replaced = install(settings)
    path.write_text("by hand\n")
    take_over.undo(settings, replaced, OURS.encode())
    assert path.read_text() == "by hand\n"
    path.unlink()
    replaced = install(settings)
    take_over.undo(settings, replaced, OURS.encode())
    assert not path.exists()


RECORDS = {
    "empty": "",
    "deep": "[" * 100_000,
    "another version": '{"version": 2, "given": {"DIGEST": {}}}',
    "a list": '{"version": 1, "given": ["DIGEST"]}',
    "no digest": '{"version": 1, "given": {"*": {}, "DIGES": {}}}',
}


@pytest.mark.parametrize("record", RECORDS.values(), ids=RECORDS)
def test_a_record_that_makes_no_sense_gives_no_consent(settings: Settings, record: str) -> None:
    path = put(settings, SITE)
    digest = hashlib.sha256(SITE.encode()).hexdigest()
    Path(settings.state_directory).mkdir()
    file = Path(consent.path(settings.state_directory))
    file.write_text(record.replace("DIGEST", digest))
    with pytest.raises(NeedsConsent):
        install(settings)
    assert path.read_text() == SITE
    # The file does not prevent new consent.
    agree(settings)
    install(settings)


def test_a_kept_entry_gives_its_attributes_and_no_set_id_bits(tmp_path: Path) -> None:
    state = str(tmp_path)
    content = Content(SITE.encode(), Attributes(0o640, 1, 2))
    kept = history.keep(state, content, Kept.FOREIGN, proxies=1)
    assert kept.attributes == Attributes(0o640, 1, 2)
    file = tmp_path / "history" / "000000.json"
    document = json.loads(file.read_text())
    file.write_text(json.dumps({**document, "mode": 0o6777}))
    (entry,) = history.entries(state)
    assert entry.attributes == Attributes(0o777, 1, 2)
    for damaged in ({"mode": -1}, {"uid": 2**32 - 1}, {"gid": 1.5}, {"uid": "root"}):
        file.write_text(json.dumps({**document, **damaged}))
        assert history.entries(state) == ()


# With HAProxy


@pytest.fixture
def frontend(either_binary: str) -> Iterator[Frontend]:
    with serving_shop(either_binary) as made:
        yield made


@pytest.fixture
def other_frontend(either_binary: str) -> Iterator[Frontend]:
    with serving_shop(either_binary) as made:
        yield made


@contextlib.contextmanager
def serving_shop(binary: str) -> Iterator[Frontend]:
    with Frontend(binary) as made:
        made.scale("shop", 2)
        made.settings["services"]["shop"] = made.service("shop", 8080)
        yield made


def site(frontend: Frontend, name: str = "site", port: int = 8070, extra: str = "") -> str:
    """A hand-written configuration that serves the pods of shop."""
    pods = frontend.pods["shop"].addresses
    servers = "\n".join(f"    server s{n} {pod}:8080" for n, pod in enumerate(pods))
    return f"""global
    stats socket {frontend.directory}/admin.sock mode 600 level admin expose-fd listeners
{extra}
defaults
    mode http
    timeout connect 5s
    timeout client 1m
    timeout server 1m
    option redispatch 1
    option idle-close-on-response
frontend {name}
    bind {frontend.host}:{port}
    default_backend pods
backend pods
{servers}
"""


def by_hand(frontend: Frontend, text: str) -> None:
    """Write haproxy.cfg and reload HAProxy, as an administrator does."""
    frontend.haproxy_cfg.write_text(text)
    os.kill(show_proc(frontend.settings["haproxy"]["master_socket"]).master, signal.SIGUSR2)


def test_a_hand_written_site_serves_until_it_is_taken_over_and_again_after(
    frontend: Frontend,
) -> None:
    live = site(frontend)
    frontend.external = RealHaproxy(frontend.binary, frontend.directory)
    frontend.external.start(live)
    frontend.haproxy_cfg.chmod(0o604)
    if os.geteuid() == 0:
        os.chown(frontend.haproxy_cfg, DAEMON, DAEMON)
    owner = frontend.haproxy_cfg.stat().st_uid
    with Load(frontend.host, 8070, clients=2) as load:
        frontend.start(wait=False)
        frontend.until(lambda: frontend.metric("fc_frontend_take_over_needs_consent") == 1)
        code, reason = frontend.get("/readyz")
        assert code == 503 and b"frontend site on" in reason and b"--take-over" in reason
        assert "site" in frontend.status()["take_over"]["message"]
        for words, expected in (
            (("apply",), 1),
            (("status",), 1),
            (("diff",), 1),
            (("check",), 0),
            (("doctor",), None),
        ):
            done = frontend.run(*words, check=False)
            assert expected in (None, done.returncode), done
            assert "apply --take-over" in done.stdout + done.stderr, words
        # The change is retried, but logged once.
        os.kill(frontend.daemon.pid if frontend.daemon else 0, signal.SIGHUP)
        frontend.drop("more.json", {"more": frontend.service("shop", 8081)})
        frontend.until(lambda: load.tally().requests > 100)
        assert len(frontend.events("needs-consent")) == 1
        assert frontend.haproxy_cfg.read_text() == live
        assert not load.stop().failures
    taken = frontend.run("apply", "--take-over")
    assert f"frontend site on {frontend.host}:8070" in taken.stdout
    assert "fc-frontend rollback 0" in taken.stdout
    assert "`defaults` had lines that the new ones lack: timeout connect 5s" in taken.stderr
    frontend.until(lambda: frontend.ready() and frontend.ask(8080).startswith("shop-"))
    assert frontend.metric("fc_frontend_take_over_needs_consent") == 0
    assert not (frontend.directory / "state" / consent.FILE).exists()
    first, *_ = json.loads(frontend.run("history", "--json").stdout)["entries"]
    assert (first["id"], first["outcome"], first["services"]) == (0, "foreign", 2)
    # Roll back to it, byte for byte; it is then kept.
    ours = frontend.running_hash()
    with Load(frontend.host, 8080, clients=2):
        assert "entry 0: reloaded" in frontend.run("rollback").stdout
    status = frontend.haproxy_cfg.stat()
    assert frontend.haproxy_cfg.read_text() == live
    assert (stat.S_IMODE(status.st_mode), status.st_uid) == (0o604, owner)
    with Load(frontend.host, 8070, clients=2) as load:
        frontend.until(lambda: frontend.ready() and frontend.metric("fc_frontend_held") == 1)
        assert "← running held" in frontend.run("history").stdout
        overview = json.loads(frontend.run("status", "--json", check=False).stdout)
        assert overview["in_sync"] and overview["held"]["id"] == 0
        frontend.until(lambda: load.tally().requests > 100)
        assert not load.stop().failures
    assert frontend.haproxy_cfg.read_text() == live
    frontend.run("resume")
    frontend.until(lambda: frontend.running_hash() == ours and frontend.ready())


def test_a_file_exchanged_by_hand_is_neither_lost_nor_overwritten(other_frontend: Frontend) -> None:
    frontend = other_frontend
    frontend.start()
    frontend.until(lambda: frontend.serves(8080, frontend.pods["shop"]))
    ours, good = frontend.running_hash(), frontend.haproxy_cfg.read_text()
    # An edit is reverted, and kept in the history.
    edited = good.replace("balance leastconn", "balance roundrobin")
    frontend.haproxy_cfg.write_text(edited)
    frontend.until(lambda: frontend.haproxy_cfg.read_text() == good)
    assert (frontend.directory / "state/history/000002.cfg").read_text() == edited
    # A foreign file is left in place, and does not affect traffic.
    live = site(frontend)
    frontend.haproxy_cfg.write_text(live)
    frontend.until(lambda: frontend.events("needs-consent"))
    assert frontend.ready() and frontend.running_hash() == ours
    assert frontend.metric("fc_frontend_config_drift") == 1
    frontend.drop("more.json", {"more": frontend.service("shop", 8081)})
    frontend.until(lambda: frontend.get("/readyz")[0] == 503)
    assert frontend.serves(8080, frontend.pods["shop"])
    # Once loaded by hand, it serves.
    by_hand(frontend, live)
    frontend.until(lambda: frontend.ask(8070).startswith("shop-"))
    assert frontend.run("apply", check=False).returncode == 1
    assert frontend.haproxy_cfg.read_text() == live
    # Consent is enough for the daemon.
    settings = Settings(
        haproxy=Haproxy(
            config_file=str(frontend.haproxy_cfg),
            master_socket=frontend.settings["haproxy"]["master_socket"],
            runtime_socket=frontend.settings["haproxy"]["runtime_socket"],
        ),
        state_directory=frontend.settings["state_directory"],
    )
    agree(settings)
    frontend.until(lambda: frontend.ready() and frontend.serves(8081, frontend.pods["shop"]))
    assert frontend.events("config-replaced")
    assert texts(settings)[0] == live
    # Loaded by hand, then moved away: the only copy is in HAProxy's memory.
    by_hand(frontend, live.replace("site", "moved"))
    frontend.until(lambda: frontend.running_hash() is None)
    frontend.stop_daemon()
    frontend.haproxy_cfg.rename(frontend.haproxy_cfg.with_suffix(".old"))
    refused = frontend.run("apply", check=False)
    assert refused.returncode == 1 and "moved" in refused.stderr
    assert not frontend.haproxy_cfg.exists() and frontend.ask(8070).startswith("shop-")
    frontend.run("apply", "--take-over")
    assert frontend.serves(8081, frontend.pods["shop"])


def test_debians_file_needs_no_consent_and_comes_back_as_it_was(other_frontend: Frontend) -> None:
    """fc-frontend starts HAProxy even with a file that has `daemon` and no socket for it."""
    frontend = other_frontend
    stock = Path("/etc/haproxy/haproxy.cfg").read_text()
    assert look_at(stock.encode(), OwnConfigs()).origin is FileOrigin.BARE
    kept = [line for line in DEBIAN.splitlines() if line.split()[:1] not in (["user"], ["group"])]
    text = "\n".join(kept).replace("/run/haproxy", str(frontend.directory)) + "\n"
    text = "\n".join(line for line in text.splitlines() if "chroot" not in line) + "\n"
    frontend.haproxy_cfg.write_text(text)
    frontend.start()
    frontend.until(lambda: frontend.serves(8080, frontend.pods["shop"]))
    assert "ssl-default-bind-ciphers" in " ".join(frontend.events("problem"))
    assert not frontend.events("needs-consent")
    refused = frontend.run("rollback", check=False)
    assert refused.returncode == 1, "a file without a proxy is gone back to by its number only"
    frontend.run("rollback", "0")
    assert frontend.haproxy_cfg.read_text() == text
    frontend.until(lambda: frontend.ready() and frontend.metric("fc_frontend_held") == 1)
    with contextlib.suppress(Unavailable):
        frontend.end_haproxy()
    frontend.until(lambda: frontend.events("haproxy-revived"))
    frontend.until(frontend.ready)
    frontend.run("resume")
    frontend.until(lambda: frontend.ready() and frontend.serves(8080, frontend.pods["shop"]))
