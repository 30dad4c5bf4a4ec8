"""No message shows the content of a file that is not a declaration, however it is reached."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import BINARIES, binary_of
from tests.faults.site import EXTRA, SERVICES, Site, Sites, serving

SECRET = "s3cr3t-T0ken"
SHAPES = {
    "shadow": f"root:$y$j9T${SECRET}:19700:0:99999:7:::\ndaemon:*:19700:0:99999:7:::\n",
    "word": SECRET,
    "words": f"{SECRET} {SECRET} 'and' \"{SECRET}\"\n",
    "key-value": f"{SECRET}: {SECRET}\n",
    "key-twice": f"{SECRET}: 1\n{SECRET}: 2\n",
    "section": f"[{SECRET}]\npassword = {SECRET}\n",
    "directive": f".{SECRET}\n",
    "alias": f"*{SECRET}\n",
    "tag": f"a: !{SECRET} b\n",
    "quote": f"listen x\n  '{SECRET}\n",
    "brace": f'listen x\n  "${{{SECRET}\n',
    "variable": f'"${SECRET}" x\n',
    "list": f"- {SECRET}\n- {SECRET}: {SECRET}\n",
    "json": f'{{"{SECRET}": "{SECRET}", "{SECRET}": 1}}',
    "json-broken": f'{{"{SECRET}": {SECRET}}}',
    "latin": f"{SECRET} \xe4\n",
    "template": f"{{{{ {SECRET} }}}}\n",
    "key": f"-----BEGIN PRIVATE KEY-----\n{SECRET}\n-----END PRIVATE KEY-----\n",
}
HAPROXY = {
    "keyword": f"listen x\n  {SECRET} here\n",
    "option": f"listen x\n  mode http\n  option {SECRET}\n",
    "backend": f"frontend x\n  bind 127.0.0.1:1 {SECRET} x\n",
    "fetch": f"listen x\n  http-request set-header a %[{SECRET}()]\n",
    "timeout": f"listen x\n  timeout connect {SECRET}\n",
    "balance": f"listen x\n  balance {SECRET}\n",
    "server": f"listen x\n  server s 127.0.0.1:1 {SECRET}\n",
    "password": f"userlist x\n  user admin insecure-password {SECRET} {SECRET}\n",
    "acl": f"listen x\n  acl a src {SECRET}\n",
    "regex": f"listen x\n  acl a path_reg ({SECRET}\n",
    "cookie": f"listen x\n  cookie {SECRET} {SECRET}\n",
}
LISTS = {
    "-f": "acl a src -f {}",
    "map": "http-request set-header x %[src,map_ip({})]",
    "crt-list": "bind 127.0.0.1:1 ssl crt-list {}",
    "crt": "bind 127.0.0.1:1 ssl crt {}",
    "lua": "http-request lua.{}",
    "spoe": "filter spoe engine e config {}",
    "ticket": "bind 127.0.0.1:1 ssl tls-ticket-keys {}",
}


@pytest.fixture(scope="module")
def every_sites() -> Iterator[dict[str, Sites]]:
    with contextlib.ExitStack() as stack:
        yield {
            name: stack.enter_context(Sites(functools.partial(serving, binary_of(name))))
            for name in BINARIES
        }


@pytest.fixture(params=BINARIES)
def site(every_sites: dict[str, Sites], request: pytest.FixtureRequest) -> Iterator[Site]:
    with every_sites[request.param].lent() as made:
        yield made


def everything_shown(site: Site) -> str:
    """Return everything that is shown to users: log, status, pages, output of commands."""
    frontend = site.frontend
    pages = [frontend.get(path)[1].decode() for path in ("/", "/status.json", "/metrics")]
    pages += [frontend.get(f"/services/{name}")[1].decode() for name in (*SERVICES, "x", "cfg-0")]
    shown = []
    for command in (["check", "--json"], ["status"]):
        done = frontend.run(*command, check=False)
        shown += [done.stdout, done.stderr]
    return "\n".join([frontend.log_text(), *pages, *shown])


def test_links_to_files_that_are_no_declarations_show_nothing_of_them(
    site: Site, short_directory: Path
) -> None:
    directory = site.frontend.services_d
    bad = []
    for number, (name, content) in enumerate({**SHAPES, **HAPROXY}.items()):
        secret = short_directory / name
        secret.write_bytes(content.encode("latin-1"))
        secret.chmod(0o600)
        suffixes = ("cfg",) if name in HAPROXY else ("cfg", "yaml", "json")
        for suffix in suffixes:
            path = directory / f"{suffix}-{number}.{suffix}"
            path.symlink_to(secret)
            bad.append(path)
    site.declare(*EXTRA)
    site.frontend.until(lambda: site.frontend.ask(EXTRA[1]) == f"{EXTRA[0]}-1", timeout=60)
    site.frontend.until(lambda: len(site.held()) == len(bad))
    shown = everything_shown(site)
    assert SECRET not in shown, [line for line in shown.splitlines() if SECRET in line]
    # The position of the error is shown, so that an honest user can correct it.
    for path in bad:
        assert str(path) in shown
    for path in bad:
        path.unlink()
    site.without_extra()
    site.is_mended()


@pytest.mark.parametrize("site", ["2.6-debian"], indirect=True)
def test_settings_and_templates_that_are_links_show_nothing_of_them(
    site: Site, short_directory: Path
) -> None:
    frontend = site.frontend
    secret = short_directory / "secret"
    secret.write_text(SHAPES["shadow"])
    good = frontend.config.read_text()
    for name in ("service.cfg.j2", "defaults.cfg.j2"):
        secret.write_text(SHAPES["words"])
        (site.templates / name).symlink_to(secret)
        check = frontend.run("check", "--strict", check=False)
        assert check.returncode == 1
        assert SECRET not in check.stdout + check.stderr
        (site.templates / name).unlink()
    for shape in ("shadow", "key-value", "key-twice"):
        secret.write_text(SHAPES[shape])
        frontend.config.unlink()
        frontend.config.symlink_to(secret)
        check = frontend.run("check", "--strict", check=False)
        assert check.returncode == 1
        assert SECRET not in check.stdout + check.stderr
    assert SECRET not in frontend.log_text()
    frontend.config.unlink()
    frontend.config.write_text(good)
    site.is_mended()


def test_lists_and_programs_show_nothing_of_themselves(site: Site, short_directory: Path) -> None:
    """The file is readable by everybody, but not by everybody who sees the page."""
    path = short_directory / "list"
    path.write_text(f"{SECRET}\n'{SECRET}\n{SECRET} {SECRET}\n")
    path.chmod(0o644)
    for number, line in enumerate(LISTS.values()):
        site.put(
            f"cfg-{number}.cfg",
            f"listen x{number}\n  bind {site.frontend.host}:{8100 + number}\n  mode http\n"
            f"  {line.format(path)}\n",
        )
        site.declare("cart", SERVICES["cart"], extra_config=LISTS["-f"].format(path))
    site.declare(*EXTRA)
    site.frontend.until(lambda: site.frontend.ask(EXTRA[1]) == f"{EXTRA[0]}-1", timeout=60)
    site.frontend.until(lambda: ("service", "cart") in site.held())
    shown = everything_shown(site)
    assert SECRET not in shown, [line for line in shown.splitlines() if SECRET in line]
    for number in range(len(LISTS)):
        (site.frontend.services_d / f"cfg-{number}.cfg").unlink()
    site.declare("cart", SERVICES["cart"])
    site.without_extra()
    site.is_mended()
