"""Files in services.d have no more rights than their owners: real files, links and mounts.

Most tests need files of several users.  For a user other than root, they run in a user namespace.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fc_frontend.config.declare import Declaration, declare, load
from fc_frontend.config.loader import is_unchanged, read
from fc_frontend.config.running import dump_running, load_running
from fc_frontend.config.schema import CAMEL_CASE
from fc_frontend.config.trust import Level
from fc_frontend.doctor.findings import Result
from fc_frontend.doctor.judge.trust import judge_declaring
from fc_frontend.doctor.observe.trust import levels, observe_named
from fc_frontend.errors import Problem, Severity, errors_in
from fc_frontend.haproxy import hold
from fc_frontend.paths.mounts import leads_to, parse
from fc_frontend.stored import save_running, stored_running
from tests.support.prepared import newcomers, prepare, prepared, running, withheld

MALLORY = 4242
"""An untrusted user without a name on this host."""
DEPLOY = 4343
BASE = {"cluster": {"nameservers": ["127.0.0.1:9"]}}
VALUES = {"shop": {"pod_port": 8080}}
RAW = {"shop": {"pod_port": 8080, "extra_config": "timeout client 5s"}}
FRAGMENT = "listen own\n  bind 127.0.0.1:18080\n  server a 127.0.0.1:9\n"

needs_users = pytest.mark.usefixtures("users")


@pytest.mark.usefixtures("namespace_of_users")
def test_all_of_this_in_a_user_namespace() -> None:
    done = subprocess.run(
        [
            *("unshare", "--map-root-user", "--map-auto"),
            *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"),
            *(__file__, __file__.replace(".py", "_daemon.py")),
        ],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


class Site:
    """A settings file and services.d in a directory that only root may write."""

    def __init__(self, root: Path, **settings: Any) -> None:
        self.root = root
        self.config = root / "etc" / "config.json"
        self.services_d = root / "etc" / "services.d"
        self.services_d.mkdir(parents=True)
        self.settings = {**BASE, "state_directory": str(root / "state"), **settings}
        self.write()

    def write(self) -> None:
        self.config.write_text(json.dumps(self.settings))

    def put(
        self, path: str, content: dict[str, Any] | str, uid: int = -1, mode: int = 0o644
    ) -> Path:
        """Write a file below the root with services or a fragment."""
        file = self.root / path
        for parent in reversed(file.parents):
            parent.mkdir(exist_ok=True)
        file.write_text(content if isinstance(content, str) else json.dumps({"services": content}))
        own(file, uid, mode)
        return file

    def link(self, path: str, target: str | Path, uid: int = -1) -> Path:
        """Create a symbolic link that belongs to a user."""
        link = self.root / path
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(target)
        os.lchown(link, uid, uid)
        return link

    def load(self) -> Declaration:
        return load(str(self.config))


def own(path: Path, uid: int, mode: int) -> None:
    os.chown(path, uid, uid)
    path.chmod(mode)


@pytest.fixture
def site(short_directory: Path) -> Site:
    return Site(short_directory)


def level(declaration: Declaration, path: Path) -> tuple[str, str]:
    verdict = declaration.verdicts[str(path)]
    return verdict.level.value, verdict.reason


def is_accepted(site: Site, path: Path) -> None:
    """Assert that raw lines in the file are accepted."""
    declaration = site.load()
    assert not errors_in(declaration.problems)
    assert level(declaration, path)[0] == "trusted", level(declaration, path)
    assert [spec.name for spec in declaration.services] == ["shop"]


def is_refused(site: Site, path: Path, *said: str) -> Problem:
    """Assert that raw lines in the file are refused, for a reason that names the path component."""
    declaration = site.load()
    (problem,) = errors_in(declaration.problems)
    assert not declaration.services
    found, reason = level(declaration, path)
    assert found == "untrusted"
    assert reason in problem.message
    for text in said:
        assert text in str(problem), problem
    assert (problem.file, problem.service, problem.field) == (str(path), "shop", "extra_config")
    assert problem.line == 1
    return problem


# Accepted files


def test_a_file_that_only_its_owner_may_write_is_trusted(site: Site) -> None:
    is_accepted(site, site.put("etc/services.d/shop.json", RAW, os.geteuid()))


@needs_users
def test_links_into_the_nix_store_are_trusted(site: Site) -> None:
    """/etc/… → /etc/static/… → /nix/store/…, which is sticky and writable by the builders."""
    store = site.root / "nix" / "store"
    site.put("nix/store/abc-etc/etc/fc-frontend/shop.json", RAW, mode=0o444)
    own(store, 0, 0o1775)
    os.chown(store, 0, 30000)
    site.link("nix/store/xyz-system/etc", "../abc-etc/etc")
    site.link("etc/static", store / "xyz-system" / "etc")
    path = site.link("etc/services.d/shop.json", "../static/fc-frontend/shop.json")
    is_accepted(site, path)
    # The store's optimiser creates hard links of equal files.
    shutil.copy(store / "abc-etc" / "etc" / "fc-frontend" / "shop.json", store / "file.json")
    os.link(store / "file.json", store / "same.json")
    path.unlink()
    is_accepted(site, site.link("etc/services.d/shop.json", store / "same.json"))


@needs_users
def test_a_named_users_checkout_is_trusted_once_it_is_named(site: Site) -> None:
    checkout = site.put("home/deploy/checkout/shop.json", RAW, DEPLOY)
    for directory in (checkout.parent, checkout.parent.parent):
        own(directory, DEPLOY, 0o755)
    path = site.link("etc/services.d/shop.json", checkout)
    said = f"the directory {site.root}/home/deploy is owned by user {DEPLOY}"
    assert f"add {DEPLOY} to trust.users" in is_refused(site, path, said).remedy
    site.settings["trust"] = {"users": [DEPLOY]}
    site.write()
    is_accepted(site, path)


@needs_users
def test_services_d_may_be_a_named_users_checkout(site: Site) -> None:
    site.services_d.rmdir()
    checkout = site.put("home/deploy/services.d/shop.json", RAW, DEPLOY)
    own(checkout.parent, DEPLOY, 0o755)
    site.link("etc/services.d", checkout.parent)
    is_refused(site, site.services_d / "shop.json")
    site.settings["trust"] = {"users": str(DEPLOY)}
    site.write()
    is_accepted(site, site.services_d / "shop.json")


@needs_users
def test_the_daemons_files_are_trusted_whoever_runs_the_command(site: Site) -> None:
    """The daemon's user is the owner of the state directory, for root's commands too."""
    state = site.root / "state"
    state.mkdir()
    path = site.put("etc/services.d/shop.json", RAW, DEPLOY)
    is_refused(site, path, f"owned by user {DEPLOY}")
    own(state, DEPLOY, 0o750)
    is_accepted(site, path)
    # A state directory in a world-writable place does not make its owner the daemon's user.
    common = site.root / "tmp"
    common.mkdir()
    own(common, 0, 0o1777)
    (common / "state").mkdir()
    own(common / "state", DEPLOY, 0o755)
    site.settings["state_directory"] = str(common / "state")
    site.write()
    problems = errors_in(site.load().problems)
    assert [problem.field for problem in problems] == ["state_directory", "extra_config"]
    assert not site.load().services
    # Nor does a link to a directory of that owner.
    shutil.rmtree(common / "state")
    (site.root / "home").mkdir()
    (site.root / "home" / "deploy").mkdir()
    own(site.root / "home" / "deploy", DEPLOY, 0o755)
    site.link("tmp/state", site.root / "home" / "deploy", DEPLOY)
    assert [p.field for p in errors_in(site.load().problems)] == ["state_directory", "extra_config"]


def in_mount_namespace(script: str, directory: Path) -> str:
    """Run a shell script with private mounts, then print levels."""
    user = [] if os.geteuid() == 0 else ["--map-root-user"]
    done = subprocess.run(
        [
            *("unshare", "--mount", *user, "/bin/sh", "-euc"),
            *(f'{script}\nexec "$1" -c "$2"', "sh", sys.executable, PRINT_LEVELS),
        ],
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


PRINT_LEVELS = """
from fc_frontend.config.declare import load
declaration = load("etc/config.json")
for path, verdict in declaration.verdicts.items():
    print(path, verdict.level, verdict.reason)
print("services", len(declaration.services))
"""


def test_a_config_map_is_trusted_where_it_is_mounted_read_only(site: Site) -> None:
    """The kubelet's volumes: links through ..data, in a directory of mode 0777."""
    fill = """
        mount -t tmpfs -o mode=0777 volume etc/services.d
        mkdir etc/services.d/..2026_01_01 && cp shop.json etc/services.d/..2026_01_01/
        ln -s ..2026_01_01 etc/services.d/..data && ln -s ..data/shop.json etc/services.d/
    """
    site.put("shop.json", RAW)
    writable = in_mount_namespace(fill, site.root)
    assert "services.d/shop.json untrusted" in writable
    assert "writable by everybody (mode 0777)" in writable
    assert "services 0" in writable
    read_only = in_mount_namespace(fill + "mount -o remount,bind,ro etc/services.d", site.root)
    assert "services.d/shop.json trusted" in read_only
    assert "services 1" in read_only


def test_a_read_only_view_of_a_writable_directory_is_not_trusted(site: Site) -> None:
    """systemd's ProtectSystem=strict gives the daemon such a view of all directories."""
    site.put("etc/services.d/shop.json", RAW)
    site.services_d.chmod(0o777)
    view = 'mount --bind "$PWD/etc" "$PWD/etc" && mount -o remount,bind,ro "$PWD/etc"'
    seen = in_mount_namespace(view, site.root)
    assert "services.d/shop.json untrusted" in seen
    assert "services 0" in seen


MOUNTS = r"""
22 1 8:1 / / ro,relatime shared:1 - ext4 /dev/sda1 rw
23 22 8:1 /srv/x\040y /etc/fc ro,relatime - ext4 /dev/sda1 rw
24 22 0:30 / /tmp rw - tmpfs tmpfs rw
25 22 0:31 / /mnt rw,nosuid - fuse.sshfs sshfs rw,user_id=1000,group_id=1000
26 22 0:32 / /iso rw - iso9660 /dev/sr0 ro
""".strip()


def test_mounts_are_read_as_the_kernel_lists_them() -> None:
    mounts = parse(MOUNTS)
    disk = os.makedev(8, 1)
    assert [mount.user for mount in mounts] == [None, None, None, 1000, None]
    assert [mount.is_writable for mount in mounts] == [False, False, True, True, False]
    assert mounts[1].root == "/srv/x y"
    assert not leads_to(mounts, disk, "/srv/x y/a")
    assert leads_to(parse(MOUNTS.replace("/ / ro", "/ / rw")), disk, "/srv/x y/a")
    # Covered by another mount, the writable one no longer leads there.
    nix = "1 0 8:1 / / rw - ext4 d rw\n2 1 8:1 /nix/store /nix/store ro - ext4 d rw"
    assert not leads_to(parse(nix), disk, "/nix/store/abc")
    assert leads_to(parse(nix), disk, "/nix/var")


def letsencrypt(site: Site) -> Path:
    """Create certbot's links, and return the path in live.

    live/NAME/chain.pem → ../../archive/NAME/chain1.pem
    """
    site.put("letsencrypt/archive/shop/chain1.pem", "no certificate")
    return site.link("letsencrypt/live/shop/chain.pem", "../../archive/shop/chain1.pem")


@needs_users
def test_certbots_links_are_trusted(site: Site) -> None:
    path = letsencrypt(site)
    site.put("etc/services.d/x.json", {"shop": {"pod_port": 1, "tls": {"ca_file": str(path)}}})
    declaration = site.load()
    assert not errors_in(declaration.problems)
    config = prepare(declaration, {}).config
    assert config is not None
    (found,) = observe_named(declaration.settings, config.text)
    assert (found.path, found.is_trusted) == (str(path), True)
    os.lchown(path, MALLORY, MALLORY)
    (found,) = observe_named(declaration.settings, config.text)
    assert not found.is_trusted
    assert found.reason == f"the link {path} is owned by user {MALLORY}"
    assert found.remedy == f"`chown -h root {path}`, or add {MALLORY} to trust.users"


# Refused files


def world_writable_directory(site: Site) -> Path:
    path = site.put("etc/services.d/shop.json", RAW)
    site.services_d.chmod(0o777)
    return path


def group_writable_directory(site: Site) -> Path:
    path = site.put("etc/services.d/shop.json", RAW)
    site.services_d.chmod(0o775)
    return path


def directory_on_the_way(site: Site) -> Path:
    target = site.put("srv/team/conf/shop.json", RAW)
    (site.root / "srv" / "team").chmod(0o777)
    return site.link("etc/services.d/shop.json", target)


def writable_file(site: Site) -> Path:
    return site.put("etc/services.d/shop.json", RAW, mode=0o664)


def posix_acl(site: Site) -> Path:
    """The mask of an ACL appears in the group bits."""
    path = site.put("etc/services.d/shop.json", RAW)
    # user::rw-, user:4242:rw-, group::r--, mask::rw-, other::r-- (acl(5), the kernel's form)
    entries = [(1, 6, -1), (2, 6, MALLORY), (4, 4, -1), (16, 6, -1), (32, 4, -1)]
    value = struct.pack("<I", 2) + b"".join(struct.pack("<HHi", *entry) for entry in entries)
    os.setxattr(path, "system.posix_acl_access", value)
    return path


def foreign_file(site: Site) -> Path:
    return site.put("etc/services.d/shop.json", RAW, MALLORY)


def foreign_link(site: Site) -> Path:
    target = site.put("srv/shop.json", RAW)
    return site.link("etc/services.d/shop.json", target, MALLORY)


def foreign_link_in_the_middle(site: Site) -> Path:
    site.put("srv/new/shop.json", RAW)
    site.link("home/current", site.root / "srv" / "new", MALLORY)
    own(site.root / "home", 0, 0o1777)
    return site.link("etc/services.d/shop.json", site.root / "home/current/shop.json")


def way_up_through_a_foreign_directory(site: Site) -> Path:
    """`..` leads back, but the directory's owner may replace it with a link."""
    site.put("srv/shop.json", RAW)
    site.put("srv/mallory/x", "")
    own(site.root / "srv" / "mallory", MALLORY, 0o755)
    return site.link("etc/services.d/shop.json", site.root / "srv/mallory/../shop.json")


def hard_link(site: Site) -> Path:
    """A hard link that root created to a file of another user."""
    home = site.put("home/shop.json", RAW, MALLORY)
    path = site.services_d / "shop.json"
    os.link(home, path)
    return path


REFUSED: dict[str, tuple[Callable[[Site], Path], str]] = {
    "world-writable directory": (
        world_writable_directory,
        "etc/services.d is writable by everybody",
    ),
    "group-writable directory": (group_writable_directory, "writable by group"),
    "directory on the way": (directory_on_the_way, "srv/team is writable by everybody (mode 0777)"),
    "writable file": (writable_file, "the file"),
    "acl": (posix_acl, "or an ACL (mode 0664)"),
    "foreign file": (foreign_file, f"is owned by user {MALLORY}"),
    "foreign link": (
        foreign_link,
        f"the link {{root}}/etc/services.d/shop.json is owned by user {MALLORY}",
    ),
    "foreign link in the middle": (foreign_link_in_the_middle, "the link {root}/home/current"),
    "way up": (way_up_through_a_foreign_directory, "the directory {root}/srv/mallory"),
    "hard link": (hard_link, f"is owned by user {MALLORY}"),
}


@needs_users
@pytest.mark.parametrize("case", REFUSED)
def test_raw_lines_are_refused_where_others_could_have_written_them(site: Site, case: str) -> None:
    make, said = REFUSED[case]
    path = make(site)
    problem = is_refused(site, path, "raw lines need a trusted file", said.format(root=site.root))
    assert problem.remedy.startswith(("`chown", "`chmod"))
    assert "or move the service to a trusted file" in problem.remedy
    # The remedy is a command that works.
    if case not in ("way up", "foreign link in the middle"):
        command = problem.remedy.split("`")[1]
        subprocess.run(["/bin/sh", "-c", command], check=True)
        is_accepted(site, path)


@needs_users
def test_values_are_accepted_from_any_file(site: Site) -> None:
    site.put("etc/services.d/shop.json", VALUES, MALLORY)
    declaration = site.load()
    assert not declaration.problems
    assert [spec.name for spec in declaration.services] == ["shop"]


@needs_users
@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"extra_config": "maxconn 10"}, "extra_config"),
        ({"server_options": "maxconn 10"}, "server_options"),
        ({"extraPodTemplateOptions": "maxconn 10"}, "extraPodTemplateOptions"),
        ({"haproxyExtraConfig": "maxconn 10"}, "haproxyExtraConfig"),
        ({"bind_options": "ssl crt /etc/ssl/x.pem"}, "bind_options"),
        ({"tls": {"ca_file": "/etc/ssl/ca.pem"}}, "tls.ca_file"),
        ({"binds": ["127.0.0.1:1", "unix@/run/x.sock"]}, "binds.1"),
        ({"binds": "abns@x"}, "binds.0"),
        ({"slots": 161}, "slots"),
    ],
)
def test_an_untrusted_file_may_declare_values_only(
    site: Site, fields: dict[str, Any], field: str
) -> None:
    services = {"shop": {"pod_port": 8080, **fields}, "good": {"pod_port": 8081}}
    path = site.put("etc/services.d/x.json", services)
    assert not errors_in(site.load().problems)
    own(path, MALLORY, 0o644)
    declaration = site.load()
    (problem,) = errors_in(declaration.problems)
    assert (problem.service, problem.file) == ("shop", str(path))
    assert problem.field == CAMEL_CASE.get(field, field)
    assert [spec.name for spec in declaration.services] == ["good"]


@needs_users
def test_harmless_raw_lines_are_accepted_where_that_is_set(site: Site) -> None:
    lines = "option httpchk GET /healthz\ntimeout server 5m"
    fields = {"mode": "http", "extra_config": lines, "server_options": "maxconn 5"}
    services = {
        "good": {"pod_port": 1, **fields},
        "bad": {"pod_port": 2, "extra_config": "acl x path -f /etc/shadow"},
    }
    path = site.put("etc/services.d/shop.json", services, MALLORY)
    problems = {(p.service, p.field): p for p in errors_in(site.load().problems)}
    assert set(problems) == {
        ("good", "extra_config"),
        ("good", "server_options"),
        ("bad", "extra_config"),
    }
    assert problems["good", "extra_config"].remedy.endswith("or set untrusted.raw_lines: safe")
    assert "raw_lines" not in problems["bad", "extra_config"].remedy
    site.settings["untrusted"] = {"raw_lines": "safe"}
    site.write()
    declaration = site.load()
    (problem,) = errors_in(declaration.problems)
    assert "`-f` is not on the list of harmless words" in problem.message
    assert f"the file {path} is owned by user {MALLORY}" in problem.message
    assert [spec.name for spec in declaration.services] == ["good"]


@needs_users
@pytest.mark.parametrize(
    "text",
    [
        json.dumps({"services": {f"a{n}": {"pod_prt": 1} for n in range(150_000)}}),
        json.dumps({"services": {"a": {f"f{n}": 1 for n in range(200_000)}}}),
        "x: &a0 [q, q]\n" + "".join(f"x{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 60)),
        json.dumps({"services": {f"a{n}": {"pod_port": 1} for n in range(300)}}),
        json.dumps({"services": {"a": {"pod_port": 1, "binds": ["x"] * 40_000}}}),
        json.dumps({"services": {"a": {"pod_port": 1, "binds": ["127.0.0.1:1"] * 17}}}),
        '{"services": {"a": ' + "[" * 900 + "]" * 900 + "}}",
    ],
)
def test_a_flood_in_an_untrusted_file_is_a_few_problems(site: Site, text: str) -> None:
    site.put("etc/services.d/root.json", {"good": {"pod_port": 1}})
    site.put("etc/services.d/x.yaml", text, MALLORY)
    sources = read(str(site.config))
    for _ in range(2):
        found = prepared(sources)
        assert [each.spec.name for each in found.plan.services] == ["good"]
        problems = [each for held in found.withheld for each in held.problems]
        assert 1 <= len(problems) <= 20
        assert len(json.dumps([problem.as_json() for problem in problems])) < 20_000
        sources = read(str(site.config), sources)


@needs_users
def test_fragments_and_templates_need_trusted_files(site: Site) -> None:
    templates = site.put("templates/service.cfg.j2", "{{ 1 / 0 }}").parent
    site.settings["haproxy"] = {"templates": str(templates)}
    site.write()
    fragment = site.put("etc/services.d/own.cfg", FRAGMENT)
    declaration = site.load()
    assert len(declaration.fragments) == len(declaration.templates) == 1
    own(fragment, MALLORY, 0o644)
    templates.chmod(0o777)
    declaration = site.load()
    assert not declaration.fragments
    assert not declaration.templates
    assert [problem.file for problem in errors_in(declaration.problems)] == [
        str(fragment),
        str(templates / "service.cfg.j2"),
    ]


@needs_users
@pytest.mark.parametrize("how", ["owner", "mode", "directory"])
def test_untrusted_settings_are_refused_whatever_they_say(site: Site, how: str) -> None:
    """The settings name programs to run, and could name their own author as trusted."""
    trap = site.root / "trap"
    trap.write_text(f"#!/bin/sh\ntouch {site.root}/sprung\n")
    trap.chmod(0o755)
    home = site.root / "home"
    home.mkdir()
    own(home, MALLORY, 0o755)
    site.settings |= {
        "haproxy": {"binary": str(trap)},
        "trust": {"users": [MALLORY]},
        "state_directory": str(home),
    }
    site.write()
    if how == "owner":
        own(site.config, MALLORY, 0o644)
    elif how == "mode":
        site.config.chmod(0o666)
    else:
        site.config.parent.chmod(0o777)
    declaration = site.load()
    (problem,) = errors_in(declaration.problems)
    assert problem.file == str(site.config)
    assert "is not trusted, and settings name programs to run" in problem.message
    assert declaration.settings.haproxy.binary == "haproxy"
    checked = fc(site, "check")
    assert checked.returncode == 1, checked.stderr
    assert str(site.config) in checked.stderr
    assert not (site.root / "sprung").exists()


@needs_users
def test_a_user_that_does_not_exist_is_a_warning(site: Site) -> None:
    site.settings["trust"] = {"users": ["root", "nobody-of-that-name"]}
    site.write()
    (problem,) = site.load().problems
    assert problem.severity is Severity.WARNING
    assert (problem.file, problem.field, problem.line) == (str(site.config), "trust.users.1", 1)
    assert "nobody-of-that-name" in problem.message


# Output of commands


def fc(site: Site, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "fc_frontend", *arguments, "--config", str(site.config)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@needs_users
def test_check_and_doctor_say_which_level_a_file_has_and_why(site: Site) -> None:
    path = site.put("etc/services.d/shop.json", VALUES)
    done = fc(site, "check")
    assert done.stdout == "good: 1 service, 10 slots, accepted by HAProxy, all files are trusted\n"
    own(path, MALLORY, 0o644)
    reason = f"the file {path} is owned by user {MALLORY}"
    done = fc(site, "check")
    assert done.returncode == 0
    assert f"untrusted: {path}: {reason}\n" in done.stdout
    assert "all files" not in done.stdout
    files = json.loads(fc(site, "check", "--json").stdout)["files"]
    assert {"path": str(path), "level": "untrusted", "reason": reason} in files
    settings = {"path": str(site.config), "level": "trusted", "reason": "only root may change it"}
    assert settings in files

    found = json.loads(fc(site, "doctor", "--json").stdout)["findings"]
    (finding,) = (each for each in found if each["check"] == "trust")
    assert finding["result"] == "warning"
    assert finding["message"] == f"{path} may declare values only: {reason}"
    assert finding["remedy"].startswith(f"`chown root {path}`, or add {MALLORY} to trust.users")
    # With limits in force, such files are expected.
    (known,) = judge_declaring(levels(site.load().verdicts), is_limited=True)
    assert (known.result, known.message) == (Result.OK, finding["message"])
    own(path, 0, 0o644)
    (good,) = judge_declaring(levels(site.load().verdicts), is_limited=False)
    assert good.message == "2 declaring files, all trusted: only root may change it"


# Effects of an untrusted file on others


@needs_users
def test_an_untrusted_file_cannot_take_a_name(site: Site) -> None:
    """In either order, the trusted definition applies, and only the other one is at fault."""
    site.put("etc/services.d/m.json", RAW)
    for name in ("a.json", "z.json"):
        site.put(f"etc/services.d/{name}", {"shop": {"pod_port": 6666}}, MALLORY)
    found = prepared(site.config)
    (spec,) = found.declaration.services
    assert spec.port == 8080
    assert withheld(found).keys() == {
        f"duplicate shop in {site.services_d}/{name}" for name in ("a.json", "z.json")
    }
    problems = errors_in(site.load().problems)
    assert [p.file for p in problems] == [f"{site.services_d}/a.json", f"{site.services_d}/z.json"]
    assert all("is also defined in" in problem.message for problem in problems)


@needs_users
def test_among_untrusted_files_the_running_definition_keeps_the_name(site: Site) -> None:
    site.put("etc/services.d/m.json", VALUES, MALLORY)
    first = declare(read(str(site.config)))
    site.put("etc/services.d/a.json", {"shop": {"pod_port": 6666}}, DEPLOY)
    (spec,) = declare(read(str(site.config)), first.raw).services
    assert spec.port == 8080
    (spec,) = declare(read(str(site.config))).services
    assert spec.port == 6666


@needs_users
@pytest.mark.parametrize(
    ("trusted", "untrusted"),
    [
        ("198.51.100.2:443", "198.51.100.2:443"),
        ("198.51.100.2:443", "*:443"),
        ("*:443", "198.51.100.2:443"),
        ("[::]:443", "198.51.100.2:443"),
        ("[2001:db8::1]:443", "[::]:443"),
    ],
)
def test_an_untrusted_file_cannot_take_connections(
    site: Site, trusted: str, untrusted: str
) -> None:
    """Neither with the same bind nor with one inside or around it, even if it was there first."""
    site.put("etc/services.d/a.json", {"a": {"pod_port": 1, "binds": untrusted}}, MALLORY)
    running = declare(read(str(site.config)))
    assert not errors_in(prepare(running, {}).problems)
    path = site.put("etc/services.d/z.json", {"z": {"pod_port": 2, "binds": trusted}})

    def refused() -> Problem:
        declaration = declare(read(str(site.config)), running.raw)
        fresh = newcomers(declaration, running.raw)
        (problem,) = errors_in(prepare(declaration, {}, newcomers=fresh).problems)
        assert problem.field == "binds.0"
        return problem

    assert refused().service == "a"
    # Nor from an earlier untrusted file.
    own(path, DEPLOY, 0o644)
    assert refused().service == "z"
    # Nor from raw text, whoever wrote it.
    path.unlink()
    site.put("etc/services.d/z.cfg", f"listen own\n  bind {trusted}\n  server a 127.0.0.1:9\n")
    assert refused().service == "a"


@needs_users
def test_services_of_one_file_may_overlap(site: Site) -> None:
    binds = {"a": "*:443", "z": "198.51.100.2:443"}
    services = {name: {"pod_port": 1, "binds": bind} for name, bind in binds.items()}
    path = site.put("etc/services.d/a.json", services)
    for uid in (0, MALLORY):
        own(path, uid, 0o644)
        problems = prepare(site.load(), {}).problems
        assert not errors_in(problems)
        assert any("also covers" in problem.message for problem in problems)


@needs_users
@pytest.mark.parametrize("kind", ["listen", "frontend", "backend"])
def test_an_untrusted_file_cannot_take_a_name_from_a_fragment(site: Site, kind: str) -> None:
    bind = "" if kind == "backend" else "  bind 127.0.0.1:18080\n"
    site.put("etc/services.d/edge.cfg", f'"{kind}" \\x73hop\n{bind}')
    site.put("etc/services.d/a.json", {"edge": {"pod_port": 1}, "shop": {"pod_port": 2}}, MALLORY)
    declaration = site.load()
    assert [problem.service for problem in errors_in(declaration.problems)] == ["edge", "shop"]
    assert not declaration.services
    assert [fragment.name for fragment in declaration.fragments] == ["edge"]


@needs_users
def test_limits_of_untrusted_files(site: Site) -> None:
    site.settings["untrusted"] = {
        "namespaces": ["team"],
        "binds": ["198.51.100.0/28:1024-65535", "[2001:db8::/64]:8443", "*:9000"],
    }
    site.write()
    good = {
        "v4": {"binds": "198.51.100.3:1024"},
        "v6": {"binds": "[2001:db8::5]:8443"},
        "any": {"binds": "*:9000"},
    }
    bad = {
        "low": {"binds": "198.51.100.3:443"},
        "other": {"binds": "198.51.101.3:8080"},
        "wide": {"binds": "*:8443"},
        "wide6": {"binds": "[::]:8443"},
        "default": {},
    }
    services = {n: {"pod_port": 80, "namespace": "team", **f} for n, f in (good | bad).items()}
    services["system"] = {**services["v4"], "namespace": "kube-system", "binds": "*:9000"}
    services["node"] = {"lb_service_port": 80, "namespace": "team", "binds": "198.51.100.4:8080"}
    path = site.put("etc/services.d/team.json", services)
    assert not errors_in(p for p in site.load().problems if p.service not in ("node", "system"))
    own(path, MALLORY, 0o644)
    declaration = site.load()
    found = {problem.service: problem.field for problem in errors_in(declaration.problems)}
    expected = dict.fromkeys(bad, "binds.0")
    assert found == {**expected, "system": "namespace", "node": "lb_service_port"} | {
        "default": found["default"]
    }
    assert {spec.name for spec in declaration.services} == set(good)


@needs_users
def test_untrusted_files_cannot_use_up_the_limits_of_the_directory(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fc_frontend.config.reading.MAX_FILES", 10)
    shop = site.put("etc/services.d/shop.json", VALUES)
    large = site.put("etc/services.d/a-large.json", "", uid=MALLORY)
    with large.open("r+") as file:
        file.truncate(64 * 1024 * 1024)
    declaration = site.load()
    assert [spec.name for spec in declaration.services] == ["shop"]
    assert {problem.file for problem in errors_in(declaration.problems)} == {str(large)}
    for number in range(12):
        site.put(f"etc/services.d/a-{number}.json", {f"m{number}": {"pod_port": 1}}, uid=MALLORY)
    declaration = site.load()
    assert str(shop) in {spec.origin.file for spec in declaration.services if spec.origin}
    messages = [problem.message for problem in errors_in(declaration.problems)]
    assert any("more than 10 files" in message for message in messages)


@needs_users
def test_an_untrusted_file_cannot_bring_back_what_a_trusted_one_withdrew(site: Site) -> None:
    path = site.put("etc/services.d/root.json", RAW)
    base = running(prepared(site.config))
    path.unlink()
    site.put("etc/services.d/bad.json", {"shop": {"pod_prt": 1}}, MALLORY)
    found = prepared(site.config, base)
    assert not found.plan.services
    (held,) = found.withheld
    assert not held.is_kept
    # The same mistake in a trusted file is harmless: the last good form keeps running.
    own(site.services_d / "bad.json", 0, 0o644)
    services = prepared(site.config, base).declaration.services
    assert [spec.extra_config for spec in services] == [("timeout client 5s",)]


@needs_users
def test_a_last_good_form_keeps_its_level(site: Site) -> None:
    path = site.put("etc/services.d/shop.json", RAW)
    stored = site.root / "running.json"
    base = running(prepared(site.config))
    stored.write_bytes(dump_running(base.declarations))
    assert load_running(str(stored)) == base.declarations
    own(path, MALLORY, 0o644)
    found = prepared(site.config, base)
    assert [spec.extra_config for spec in found.declaration.services] == [("timeout client 5s",)]
    assert [held.is_kept for held in found.withheld] == [True]
    # A kept form of an untrusted file remains untrusted.
    path.write_text(json.dumps({"services": VALUES}))
    base = running(prepared(site.config))
    assert [raw.level for raw in base.declarations.services.values()] == [Level.UNTRUSTED]
    path.write_text(json.dumps({"services": {"shop": {"pod_prt": 1}}}))
    assert prepared(site.config, base).declaration.untrusted == {"shop"}


@needs_users
def test_a_state_directory_that_others_may_write_is_refused(site: Site) -> None:
    """The last good forms in it contain settings, and those name programs to run."""
    state = site.root / "state"
    state.mkdir()
    site.put("etc/services.d/shop.json", RAW)
    declaration = site.load()
    assert not declaration.problems
    save_running(declaration.settings, declaration.raw)
    assert stored_running(str(state)).services
    # Its hold for a rollback is refused as well.
    held = hold.Hold(id=1, hash="0123456789abcdef", since=1.0, by="mallory")
    hold.save(str(state), held)
    assert hold.load(str(state)) == held
    state.chmod(0o777)
    assert hold.load(str(state)) == hold.Hold()
    (problem,) = errors_in(site.load().problems)
    assert problem.field == "state_directory"
    assert not stored_running(str(state)).services


# Races


@needs_users
def test_what_is_judged_is_what_is_read(site: Site) -> None:
    """A link is swapped repeatedly between root's file and another user's file."""
    good, evil = ({**RAW["shop"], "extra_config": f"timeout client {n}s"} for n in (1, 2))
    site.put("srv/good.json", {"shop": good})
    site.put("srv/evil.json", {"shop": evil}, MALLORY)
    path = site.link("etc/services.d/shop.json", site.root / "srv/good.json")
    swap = textwrap.dedent(
        f"""
        import os
        os.chdir({str(site.root)!r})
        while True:
            for name in ("evil", "good"):
                os.symlink(f"{{os.getcwd()}}/srv/{{name}}.json", "etc/new")
                os.rename("etc/new", "etc/services.d/shop.json")
        """
    )
    seen = set()
    with subprocess.Popen([sys.executable, "-c", swap]) as swapping:
        try:
            for _ in range(400):
                declaration = site.load()
                seen.add(declaration.verdicts[str(path)].level.value)
                lines = {spec.extra_config for spec in declaration.services}
                assert lines <= {("timeout client 1s",)}
        finally:
            swapping.kill()
    assert seen == {"trusted", "untrusted"}


@needs_users
def test_a_link_does_not_show_its_owner_what_he_may_not_read(site: Site) -> None:
    """Error messages would quote the file: the daemon may read more than the link's owner."""
    secret = site.put("srv/secret.json", "{not json, and a secret", mode=0o600)
    path = site.link("etc/services.d/shop.json", secret, MALLORY)
    (problem,) = errors_in(site.load().problems)
    assert f"leads by {path}, a link of user {MALLORY}, to another user's file" in problem.message
    secret.chmod(0o644)
    (problem,) = errors_in(site.load().problems)
    assert "not JSON" in problem.message
    (site.root / "srv").chmod(0o700)
    (problem,) = errors_in(site.load().problems)
    assert "another user's file" in problem.message


def test_a_level_follows_owner_and_mode_without_a_change_of_the_text(site: Site) -> None:
    """The level also changes if only a directory on the path changes, and not the file itself."""
    target = site.put("srv/team/shop.json", RAW)
    site.link("etc/services.d/shop.json", target)
    site.put("etc/services.d/other.json", {"other": {"pod_port": 1}})
    sources = read(str(site.config))
    assert len(declare(sources).services) == 2
    target.parent.chmod(0o777)
    assert not is_unchanged(sources)
    again = read(str(site.config), sources)
    assert [spec.name for spec in declare(again).services] == ["other"]
    named = read(str(site.config), sources, frozenset(("shop.json",)))
    assert [spec.name for spec in declare(named).services] == ["other"]
