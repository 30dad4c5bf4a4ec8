"""Files that a configuration names: only regular, bounded files that everybody may read.

HAProxy waits for pipes, reads devices without end, and as root serves files that only root may
read.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from fc_frontend.haproxy.named_files import MAX_BYTES, MAX_ENTRIES, file_problems
from fc_frontend.plan.model import Haproxy
from fc_frontend.render.config import Config
from fc_frontend.syntax.files import named_files
from tests.conftest import BINARIES, RealHaproxy, binary_of, until
from tests.faults.site import EXTRA, SERVICES, Site, Sites, serving
from tests.hostile.hung import hung

# Files that HAProxy opens

HEAD = "defaults\n  mode http\n  timeout client 5s\n  timeout server 5s\n  timeout connect 5s\n"
IN_GLOBAL = """
lua-load {}
lua-load-per-thread {}
ssl-dh-param-file {}
h1-case-adjust-file {}
httpclient.ssl.ca-file {}
server-state-file {}
"lua-l"oad {}
""".split("\n")[1:-1]
IN_LISTEN = """
errorfile 503 {}
bind 127.0.0.1:7 ssl crt {}
bind 127.0.0.1:7 ssl crt-list {}
bind 127.0.0.1:7 ssl crt {pem} ca-file {}
bind 127.0.0.1:7 ssl crt {pem} ca-file {pem} crl-file {}
bind 127.0.0.1:7 ssl crt {pem} ca-verify-file {}
bind 127.0.0.1:7 ssl crt {pem} tls-ticket-keys {}
bind 127.0.0.1:7 ssl crt {pem} generate-certificates ca-sign-file {}
bind 127.0.0.1:7 ssl "c"rt {}
server s 127.0.0.1:4 ssl crt {}
server s 127.0.0.1:4 ssl ca-file {}
server s 127.0.0.1:4 ssl ca-file {pem} crl-file {}
acl a path -f {}
acl a path -i -m beg -f {empty} -f {}
acl a path -M -f {}
acl a path -n -u 7 -f {}
http-request deny if {{ path -f {} }}
http-request deny if ! {{ src -f '{}' }}
http-request deny if !{{ src -f {} }}
use_backend a if !!{{ src -f {} }} !{{ src 127.0.0.1 }}
http-request set-header a %[path,map({})]
http-request set-header a "%[path,map_beg({},x)]"
http-request set-header a %[path,map_str_int('{}',1)]
http-request set-header a '%[path,map_sub("{}")]'
http-request set-var(txn.a) path,map_reg({})
http-request deny if {{ var(txn.a),jwt_verify(RS256,{}) -m int 1 }}
http-request deny if {{ var(txn.a),jwt_verify(txn.alg,"{}") -m int 1 }}
http-request deny if {{ var(txn.a),jwt_verify(ES256,{relative}) -m int 1 }}
acl a path -f {relative}
http-request set-header a %[path,map({relative})]
http-request return status 200 content-type a/b file {}
http-request return status 200 content-type a/b hdr file x lf-file {}
http-request return status 200 errorfile {}
http-request deny deny_status 403 content-type a/b file {}
http-request tarpit deny_status 403 content-type a/b lf-file {}
http-response return status 200 content-type a/b file {}
http-response deny status 403 errorfile {}
http-after-response set-header a %[path,map_dom({})]
http-error status 404 content-type a/b lf-file {}
log-format "%[path,map_dir({})]"
use_backend %[path,map_end({})]
stick on src,map_ip({})
filter spoe engine e config {}
""".split("\n")[1:-1]
NOT_OPENED = """
# crt {} -f {}
acl a path -- -f {}
acl a path /a -f {}
http-request deny if {{ path {} }}
http-request set-path {}
http-request set-header file {}
http-request return status 200 content-type a/b string file {}
http-request return status 200 content-type a/b hdr file {}
monitor-uri {}
stats uri {}
redirect location {}
external-check path {}
""".split("\n")[1:-1]


@pytest.fixture(scope="module")
def pem(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("pem") / "site.pem"
    certificate(path)
    return str(path)


def certificate(path: Path) -> None:
    key = path.with_suffix(".tmp")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
         "-nodes", "-subj", "/CN=site", "-days", "2", "-keyout", key, "-out", path],
        check=True, capture_output=True,
    )  # fmt: skip
    path.write_text(path.read_text() + key.read_text())
    key.unlink()


def text_with(line: str, *, is_global: bool) -> str:
    if is_global:
        return f"global\n  {line}\n{HEAD}listen a\n  bind 127.0.0.1:1\n"
    return f"global\n{HEAD}listen a\n  bind 127.0.0.1:1\n  {line}\n"


@contextlib.contextmanager
def opened_by_haproxy(binary: str, text: str, pipe: Path) -> Iterator[Callable[[], bool]]:
    """Run `haproxy -c`; yield a function that returns whether HAProxy waits to open the pipe.

    HAProxy waits until a writer opens the pipe.
    """
    config = pipe.with_name("haproxy.cfg")
    config.write_text(text)
    with subprocess.Popen(
        [binary, "-c", "-f", config],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/",
    ) as check:

        def is_waiting() -> bool:
            try:
                os.close(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))
            except OSError:
                assert check.poll() is None, "HAProxy ended without opening it"
                return False
            return True

        yield is_waiting
        check.kill()


@pytest.mark.parametrize(
    ("line", "is_global"),
    [*((line, True) for line in IN_GLOBAL), *((line, False) for line in IN_LISTEN)],
)
def test_a_pipe_that_haproxy_would_wait_for_is_found(
    haproxy_binary: str, short_directory: Path, pem: str, line: str, is_global: bool
) -> None:
    pipe = short_directory / "pipe"
    os.mkfifo(pipe)
    (short_directory / "empty").touch()
    line = line.format(
        pipe, pem=pem, empty=short_directory / "empty", relative=str(pipe).removeprefix("/")
    )
    text = text_with(line, is_global=is_global)
    # HAProxy does open it: a file that HAProxy never opens needs no examination.
    with opened_by_haproxy(haproxy_binary, text, pipe) as is_waiting:
        until(is_waiting)
    assert str(pipe) in [named.path for named in named_files(text)]
    (problem,) = file_problems(Config(text, ""), Haproxy())
    assert problem.message.endswith(f"{pipe} is not a regular file")
    assert problem.remedy


@pytest.mark.parametrize("line", NOT_OPENED)
def test_what_haproxy_does_not_open_does_not_count(
    haproxy_binary: str, short_directory: Path, line: str
) -> None:
    pipe = short_directory / "pipe"
    os.mkfifo(pipe)
    text = text_with(line.format(*[pipe] * line.count("{}")), is_global=False)
    done = subprocess.run(
        [haproxy_binary, "-c", "-f", "/dev/stdin"], input=text, text=True, capture_output=True,
        check=False, timeout=30,
    )  # fmt: skip
    assert "unknown keyword" not in done.stderr
    assert not list(named_files(text))


# Problems of files


def problems(line: str, directory: Path, group: str | None = None) -> list[str]:
    haproxy = Haproxy(config_file=str(directory / "haproxy.cfg"), group=group)
    found = file_problems(Config(text_with(line, is_global=False), ""), haproxy)
    assert all(problem.remedy for problem in found)
    return [problem.message for problem in found]


def test_relative_names_mean_what_they_mean_to_haproxy(tmp_path: Path) -> None:
    text = (
        f"global\n  crt-base {tmp_path}/crt\n  ca-base {tmp_path}/ca\n  default-path origin /base\n"
        f"{HEAD}listen a\n  bind :1 ssl crt site.pem ca-file ca.pem\n  acl a path -f list\n"
        "  bind :2 ssl crt /abs.pem crt-list list ca-file @system-ca\n"
        '  errorfile 503 "$HOME/x"\n  bind :3 namespace ../../../dev/ptmx\n'
    )
    assert [named.path for named in named_files(text)] == [
        f"{tmp_path}/crt/site.pem",
        f"{tmp_path}/ca/ca.pem",
        "/base/list",
        "/abs.pem",
        f"{tmp_path}/crt/list",
        None,
        "/var/run/netns/../../../dev/ptmx",
    ]
    messages = [problem.message for problem in file_problems(Config(text, ""), Haproxy())]
    assert messages == [
        f"the certificate {tmp_path}/crt/site.pem does not exist",
        f"the CA file {tmp_path}/ca/ca.pem does not exist",
        "the list /base/list does not exist",
        "the certificate /abs.pem does not exist",
        f"the list of certificates {tmp_path}/crt/list does not exist",
        "errorfile: a file's name has a variable",
        *messages[6:],
    ]


def test_files_in_lists_and_directories_and_beside_certificates(tmp_path: Path, pem: str) -> None:
    site = tmp_path / "site.pem"
    site.write_bytes(Path(pem).read_bytes())
    directory, ca, pipe = tmp_path / "certs", tmp_path / "ca", tmp_path / "pipe"
    directory.mkdir()
    ca.mkdir()
    os.mkfifo(pipe)
    crt_list, spoe = tmp_path / "list", tmp_path / "spoe"
    crt_list.write_text(f"{site} [ca-file {pipe}] example.org\n# {pipe}\n")
    spoe.write_text(f"[e]\nspoe-agent a\nspoe-message m\n  acl a src -f {pipe}\n")
    lines = (
        f"bind :1 ssl crt {directory} crt {site} ca-file {ca}\n  bind :2 ssl crt-list {crt_list}"
    )
    lines += f"\n  filter spoe config {spoe}"
    assert problems(lines, tmp_path) == [
        f"crt-list: {crt_list}, line 1: ca-file: {pipe} is not a regular file",
        f"config: {spoe}, line 4: -f: {pipe} is not a regular file",
    ]
    # HAProxy skips non-regular files in a directory of certificates, but not in one of CAs.
    os.mkfifo(directory / "pipe.pem")
    (directory / "old").mkdir()
    (directory / "log.pem").symlink_to("/proc/kmsg")
    os.mkfifo(ca / "pipe")
    os.mkfifo(ca / "pipe.pem")
    os.mkfifo(tmp_path / "site.pem.ocsp")
    assert problems(lines, tmp_path)[:3] == [
        f"crt: {directory}/log.pem is not a regular file",
        f"crt: {site}.ocsp is not a regular file",
        f"ca-file: {ca}/pipe.pem is not a regular file",
    ]


def test_missing_files_are_named_before_haproxy_is_asked(tmp_path: Path, pem: str) -> None:
    site, crt_list = tmp_path / "site.pem", tmp_path / "list"
    crt_list.write_text(f"{pem}\n{tmp_path}/absent.pem\n")
    lines = (
        f"bind :1 ssl crt {site} ca-file {tmp_path}/ca.pem\n  bind :2 ssl crt-list {crt_list}\n"
        f"  acl a src -f {tmp_path}/nets\n  http-request set-header a %[path,map({tmp_path}/m)]\n"
        f"  errorfile 503 {tmp_path}/503.http\n  acl b path -f opt@{tmp_path}/optional"
    )
    assert problems(lines, tmp_path) == [
        f"the certificate {site} does not exist",
        f"the CA file {tmp_path}/ca.pem does not exist",
        f"the list {tmp_path}/nets does not exist",
        f"the map {tmp_path}/m does not exist",
        f"the error file {tmp_path}/503.http does not exist",
    ]
    # HAProxy also finds a certificate by the type of its key.
    Path(f"{site}.rsa").write_bytes(Path(pem).read_bytes())
    assert problems(lines, tmp_path)[0] == f"the CA file {tmp_path}/ca.pem does not exist"


def test_files_are_bounded_in_size_and_number(tmp_path: Path) -> None:
    sparse, directory = tmp_path / "sparse", tmp_path / "certs"
    sparse.touch()
    os.truncate(sparse, 10 << 30)
    assert problems(f"acl a path -f {sparse}", tmp_path) == [
        f"-f: {sparse} is larger than {MAX_BYTES} bytes"
    ]
    directory.mkdir()
    for number in range(MAX_ENTRIES + 1):
        (directory / str(number)).symlink_to("nowhere")
    assert problems(f"bind :1 ssl crt {directory}", tmp_path) == [
        f"crt: {directory} has more than {MAX_ENTRIES} entries"
    ]
    many = []
    for number in range(5):
        path = tmp_path / str(number)
        path.touch()
        os.truncate(path, MAX_BYTES)
        many.append(f"acl a path -f {path}")
    (found,) = problems("\n  ".join(many), tmp_path)
    assert found.startswith(f"-f: {tmp_path}/4 and the files named before it are larger than")


SERVED = ("errorfile 503 {}", "http-request return content-type a/b status 200 file {}",
          "http-request return content-type a/b status 200 lf-file {}")  # fmt: skip
READ = ("acl a path -f {}", "http-request set-header a %[path,map({})]", "bind :1 ssl crt-list {}",
        "filter spoe config {}")  # fmt: skip


@pytest.mark.parametrize("line", [*SERVED, *READ])
def test_what_clients_can_see_must_be_for_everybody(tmp_path: Path, line: str) -> None:
    elsewhere = tmp_path / "etc" / "haproxy"
    shadow = tmp_path / "shadow"
    shadow.write_text("root:secret:1\n")
    shadow.chmod(0o640)
    (message,) = problems(line.format(shadow), elsewhere)
    assert f"{shadow} is " in message
    assert "secret" not in message
    # Also through a link.
    (tmp_path / "link").symlink_to("shadow")
    assert problems(line.format(tmp_path / "link"), elsewhere)
    shadow.chmod(0o644)
    # In a directory that is closed to others, but contains haproxy.cfg as well.
    tmp_path.chmod(0o700)
    assert problems(line.format(shadow), tmp_path) == []
    assert problems(line.format(shadow), Path("/etc/haproxy"))
    assert problems(line.format("/dev/null"), Path("/etc/haproxy")) == []


def test_lists_may_be_for_haproxys_group_alone(tmp_path: Path) -> None:
    path = tmp_path / "list"
    path.touch(0o640)
    os.chown(path, 0, 1)
    for line in READ:
        assert problems(line.format(path), tmp_path, group="daemon") == []
    for line in SERVED:
        assert problems(line.format(path), tmp_path, group="daemon")


def test_keys_may_be_for_root_alone(tmp_path: Path, pem: str) -> None:
    path = tmp_path / "key.pem"
    path.write_bytes(Path(pem).read_bytes())
    path.chmod(0o600)
    assert problems(f"bind :1 ssl crt {path} ca-file {path}", tmp_path) == []


def test_a_file_that_haproxy_replaces_in_a_check_is_refused(haproxy: RealHaproxy) -> None:
    precious = haproxy.directory / "precious"
    precious.write_text("precious")
    text = f"ring r\n  size 65536\n  backing-file {precious}\n{HEAD}"
    assert [p.message for p in file_problems(Config(text, ""), Haproxy())] == [
        "backing-file: HAProxy replaces the file each time it checks a configuration"
    ]
    # HAProxy does replace it.
    haproxy.write(text)
    subprocess.run([haproxy.binary, "-c", "-f", haproxy.config_file], check=False, timeout=30)
    assert precious.read_bytes() != b"precious"


def test_a_file_system_that_does_not_answer_is_not_waited_for(tmp_path: Path) -> None:
    mount = tmp_path / "mount"
    mount.mkdir()
    with hung(mount):
        assert problems(f"acl a path -f {mount}/list", tmp_path) == [
            f"-f: {mount}/list does not answer within 5 s"
        ]
        assert problems(f"acl a path -f {mount}/list", tmp_path)
        # The number of such files does not keep others from being examined.
        many = "\n  ".join(f"acl a path -f {mount}/{number}" for number in range(40))
        good = tmp_path / "good"
        os.mkfifo(good)
        *slow, found = problems(f"{many}\n  acl a path -f {good}", tmp_path)
        assert len(slow) == 40
        assert found == f"-f: {good} is not a regular file"


# With the daemon


@pytest.fixture(scope="module")
def every_sites() -> Iterator[dict[str, Sites]]:
    with contextlib.ExitStack() as stack:
        yield {
            name: stack.enter_context(
                Sites(functools.partial(serving, binary_of(name), check_timeout="5s"))
            )
            for name in BINARIES
        }


@pytest.fixture(params=BINARIES)
def site(every_sites: dict[str, Sites], request: pytest.FixtureRequest) -> Iterator[Site]:
    """A site under load, as first made; each case must remove everything that it adds."""
    with every_sites[request.param].lent() as made:
        yield made


PORT = 8100


def listen(site: Site, *lines: str, number: int = 0) -> str:
    """Return a fragment with a section of its own."""
    bind = f"bind {site.frontend.host}:{PORT + number}"
    return "\n  ".join([f"listen by-hand-{number}", "mode http", bind, *lines]) + "\n"


def innocent_change_goes_through(site: Site) -> None:
    """A service added in the same batch is served; the other services never stop."""
    name, port = EXTRA
    site.declare(name, port)
    site.frontend.until(lambda: site.frontend.ask(port) == f"{name}-1", timeout=60)
    site.still_serve()


def everything_shown(site: Site) -> str:
    """Return everything that is shown to users: log, status, pages, output of commands."""
    frontend = site.frontend
    pages = [frontend.get(path)[1].decode() for path in ("/", "/status.json", "/metrics")]
    pages += [frontend.get(f"/services/{name}")[1].decode() for name in (*SERVICES, "by-hand-0")]
    check = frontend.run("check", check=False)
    status = frontend.run("status", check=False)
    shown = [check.stdout, check.stderr, status.stdout, status.stderr]
    return "\n".join([frontend.log_text(), *pages, *shown])


def test_a_path_in_a_comment_or_a_rule_is_only_text(site: Site) -> None:
    rule = "http-request deny if { path /proc/kmsg /dev/ptmx /etc/shadow }"
    (site.frontend.services_d / "hand.cfg").write_text(
        "# see /proc/kmsg, \"/dev/zero\" and '/dev/ptmx'\n"
        + listen(site, rule, "# -f /proc/kmsg", "http-request return status 204")
    )
    innocent_change_goes_through(site)
    site.frontend.until(lambda: site.frontend.get("/x", PORT)[0] == 204)
    assert site.frontend.get("/proc/kmsg", PORT)[0] == 403
    assert not site.held()
    tidied(site)


BAD_LINES = {
    "terminal": "acl x path -f /dev/ptmx",
    "random": "acl x path -f /dev/urandom",
    "zero by a map": "http-request set-header a %[path,map(/dev/zero)]",
    "kernel log": "acl x path -f /proc/kmsg",
    "kernel log as certificate": "bind /tmp/none.sock ssl crt /proc/kmsg",
    "standard input": "acl x path -f /dev/stdin",
    "shadow": "http-request return status 200 content-type text/plain file /etc/shadow",
    "shadow as error": "errorfile 503 /etc/shadow",
    "shadow as list": "acl x src -f /etc/shadow",
    "pipe": "acl x path -f {pipe}",
    "sparse": "acl x path -f {sparse}",
}


BAD_FIELDS: dict[str, dict[str, object]] = {
    "cart": {"extra_config": "http-request deny if { src -f /dev/ptmx }"},
    "docs": {"bind_options": "ssl crt /dev/ptmx"},
    "shop": {"tls": {"ca_file": "/dev/ptmx"}},
}


def test_units_that_name_bad_files_cost_only_themselves(site: Site, short_directory: Path) -> None:
    os.mkfifo(short_directory / "pipe")
    (short_directory / "sparse").touch()
    os.truncate(short_directory / "sparse", 10 << 30)
    held = {("service", name): "the last good version keeps running" for name in BAD_FIELDS}
    for number, bad in enumerate(BAD_LINES.values()):
        line = bad.format(pipe=short_directory / "pipe", sparse=short_directory / "sparse")
        text = listen(site, line, number=number)
        (site.frontend.services_d / f"hand{number}.cfg").write_text(f"\n\n{text}")
        held["fragment", f"hand{number}"] = "not deployed"
    for name, fields in BAD_FIELDS.items():
        site.declare(name, SERVICES[name], **fields)
    innocent_change_goes_through(site)
    found = site.until_held(held)
    for (kind, name), problems in found.items():
        (problem,) = problems
        assert problem["message"]
        assert problem["remedy"]
        if kind == "fragment":
            file = str(site.frontend.services_d / f"{name}.cfg")
            assert (problem["file"], problem["line"]) == (file, 6)
        else:
            assert problem["file"] == str(site.file(name))
            assert problem["field"].split(".")[0] in BAD_FIELDS[name]
            assert "/dev/ptmx is not a regular file" in problem["message"]
    assert "root:" not in everything_shown(site)
    for name in BAD_FIELDS:
        site.declare(name, SERVICES[name])
    tidied(site)


def endless(site: Site, directory: Path) -> None:
    """Change the settings so that each check runs a program without end."""
    script = directory / "endless.lua"
    script.write_text("while true do end\n")
    site.frontend.settings["haproxy"]["global_extra"] = f"lua-load {script}"
    site.frontend.write()


def mended(site: Site) -> None:
    """Undo the change of `endless`."""
    del site.frontend.settings["haproxy"]["global_extra"]
    site.frontend.write()
    tidied(site)


def test_a_check_that_hangs_costs_only_the_change_that_makes_it_hang(
    site: Site, short_directory: Path
) -> None:
    """Whether a program ends cannot be detected in advance."""
    endless(site, short_directory)
    innocent_change_goes_through(site)
    site.until_held({("settings", ""): "the last good version keeps running"})
    # It is retried repeatedly, and other changes do not wait for it.
    site.declare("cart", SERVICES["cart"], extra_config="http-response set-header x new")
    text = site.frontend.haproxy_cfg.read_text
    site.frontend.until(lambda: "set-header x new" in text() and site.frontend.ready(), timeout=60)
    site.still_serve()
    site.declare("cart", SERVICES["cart"])
    mended(site)


def test_a_check_that_needs_too_much_costs_only_its_change(site: Site) -> None:
    hand = site.frontend.services_d / "hand.cfg"
    hand.write_text(listen(site, "server-template s 1-1000000 127.0.0.1:1"))
    innocent_change_goes_through(site)
    site.until_held({("fragment", "hand"): "not deployed"})
    hand.unlink()
    tidied(site)


def test_no_check_outlives_a_daemon_that_is_killed(site: Site, short_directory: Path) -> None:
    daemon = site.frontend.daemon
    assert daemon is not None
    process = psutil.Process(daemon.pid)
    endless(site, short_directory)

    def checks() -> list[psutil.Process]:
        found = [child for child in process.children() if child.name() == "haproxy"]
        return [child for child in found if "-c" in child.cmdline()]

    (check,) = until(checks)
    site.frontend.stop_daemon(signal.SIGKILL)
    until(lambda: not check.is_running() or check.status() == psutil.STATUS_ZOMBIE)
    site.still_serve()
    site.frontend.start()
    mended(site)


# Files in services.d themselves


LINKS = {
    "kernel log": "/proc/kmsg",
    "environment": "/proc/self/environ",
    "zero": "/dev/zero",
    "terminal": "/dev/ptmx",
    "input": "/dev/stdin",
    "directory": "..",
}


def test_files_that_are_none_cost_only_themselves(site: Site, short_directory: Path) -> None:
    """A pipe, and links to devices, kernel files, themselves and a dead NFS server."""
    directory = site.frontend.services_d
    mount = short_directory / "mount"
    mount.mkdir()
    with hung(mount):
        for suffix in ("yaml", "json", "cfg"):
            for kind, target in LINKS.items():
                (directory / f"{kind.replace(' ', '-')}.{suffix}").symlink_to(target)
            os.mkfifo(directory / f"pipe.{suffix}")
            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind(str(directory / f"socket.{suffix}"))
            (directory / f"circle.{suffix}").symlink_to(f"circle.{suffix}")
        (directory / "dead.yaml").symlink_to(mount / "file")
        bad = [path for path in directory.iterdir() if path.stem not in SERVICES]
        innocent_change_goes_through(site)
        site.until_held({("file", str(path)): "not deployed" for path in bad})
        for path in bad:
            path.unlink()
        tidied(site)


def test_the_settings_go_back_if_their_file_becomes_a_device(site: Site) -> None:
    good = site.frontend.config.read_text()
    site.frontend.config.unlink()
    site.frontend.config.symlink_to("/dev/zero")
    innocent_change_goes_through(site)
    site.frontend.config.unlink()
    site.frontend.write()
    assert json.loads(good) == json.loads(site.frontend.config.read_text())
    tidied(site)


def tidied(site: Site) -> None:
    """Remove everything that a case has added, and check that the site is as before."""
    for path in site.frontend.services_d.iterdir():
        if path.stem not in SERVICES:
            path.unlink()
    site.without_extra()
    site.is_mended()
