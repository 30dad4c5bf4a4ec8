"""Every command in the README does what the README says, on a machine like the README's.

The frontend VM is a network namespace with a mount namespace: addresses, paths and ports are the
same as in the README, and the host is not changed.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import yaml

from fc_frontend.config.declare import load
from fc_frontend.errors import errors_in

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.rst").read_text()
EXAMPLES = ROOT / "contrib" / "examples"
SITUATIONS = EXAMPLES / "situations"
PASSWORD = "$2y$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a"


def commands(prompt: str) -> list[str]:
    consoles = re.findall(r"code-block:: console\n\n((?:    .*\n)+)", README)
    return re.findall(rf"^    \{prompt} (.*)$", "".join(consoles), re.MULTILINE)


def test_the_readme_is_short_and_has_the_commands_that_are_run_here() -> None:
    assert len(README.splitlines()) < 120
    assert commands("$") == ["sh contrib/demo", "sh tests/run"]
    assert len(commands("#")) == 10
    ci = (ROOT / ".ci" / "run").read_text()
    assert f"exec {commands('$')[1]}" in ci


def test_the_demo_command_works_in_a_fresh_checkout(tmp_path: Path) -> None:
    checkout = fresh_checkout(tmp_path)
    environ = {k: v for k, v in os.environ.items() if k not in ("VIRTUAL_ENV", "FC_FRONTEND_VENV")}
    # A machine without HAProxy on PATH: the embedded one must be enough.
    environ["PATH"] = ":".join(
        part for part in environ["PATH"].split(":") if not (Path(part) / "haproxy").exists()
    )
    # An ordinary user without capabilities, whoever runs the tests.
    user = ["unshare", "--user", "--map-user=1000"]
    done = subprocess.run(
        [*user, "/bin/sh", *commands("$")[0].split()[1:]],
        cwd=checkout,
        env=environ,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "A broken file affects no other service" in done.stdout
    assert re.search(r"\d+ requests: \d+ answered, [0-4] failed", done.stdout)
    again = subprocess.run(
        [*user, "/bin/sh", "contrib/demo", "--help"],
        cwd=checkout,
        env=environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "installing" not in again.stdout


@pytest.mark.extended
def test_the_commands_that_the_demo_suggests() -> None:
    """The suggested commands work, and SIGHUP ends everything that the demo started."""
    argv = [
        *("unshare", "--user", "--map-user=1000"),
        *(sys.executable, "-m", "fc_frontend", "demo", "--keep"),
    ]
    told: list[str] = []
    demo = subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, text=True, bufsize=1)
    try:
        assert demo.stdout is not None
        for line in demo.stdout:
            told.append(line.strip())
            if "Ctrl-C ends it." in line:
                break
        text = "\n".join(told)
        offered = dict(re.findall(r"^([a-z0-9 ]+): +(\S.*)$", text, re.MULTILINE))
        for name in ("how all is", "one service", "no new traffic", "traffic again", "scale to 20"):
            # An ordinary user with the same number, who owns the sockets.
            inside = ["nsenter", "--user", "--preserve-credentials", "-t", str(demo.pid)]
            command = [*inside, "/bin/sh", "-c", offered[name]]
            done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
            assert done.returncode in (0, 1), (name, done.stdout, done.stderr)
        assert "20 pods" in next(line for line in demo.stdout if "pods now" in line)
        stage = str(Path(offered["files"]).parent)
        demo.send_signal(signal.SIGHUP)
        demo.stdout.read()
        demo.wait(30)
    finally:
        demo.kill()
        demo.communicate()
    left = [
        process.pid
        for process in psutil.process_iter(["cmdline"])
        if stage in " ".join(process.info["cmdline"] or ())
    ]
    assert not left
    assert not Path(stage).exists()


def fresh_checkout(tmp_path: Path) -> Path:
    """Copy all tracked files, and untracked ones that are not ignored, as in a checkout."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\n")
    checkout = tmp_path / "checkout"
    for name in filter(None, listed):
        if (ROOT / name).is_file():
            (checkout / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, checkout / name)
    return checkout


def test_the_first_service_on_a_frontend_vm(tmp_path: Path) -> None:
    """The root commands of the README, in separate namespaces."""
    every = commands("#")
    software, rest = every[:3], every[3:]
    assert software[0].startswith("apt-get ")
    if os.getuid() == 0:
        subprocess.run(software[0].split(), check=True, capture_output=True, timeout=300)
        namespaces = ["unshare", "--mount", "--pid", "--mount-proc", "--fork"]
    else:
        namespaces = [
            "unshare",
            "--map-root-user",
            "--map-auto",
            "--mount",
            "--pid",
            "--mount-proc",
            "--fork",
        ]
    done = subprocess.run(
        [
            *namespaces,
            sys.executable,
            str(ROOT / "tests" / "support" / "frontend_vm.py"),
            *("setup", *software[1:], "--", *rest),
        ],
        cwd=fresh_checkout(tmp_path),
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("served by ingress-") == 3
    assert "good: reloaded in" in done.stdout


def test_the_readmes_service_is_the_example() -> None:
    block = re.search(r"code-block:: yaml\n\n((?:    .*\n|\n)+)", README)
    assert block
    shown = yaml.safe_load(re.sub(r"^    ", "", block[1], flags=re.MULTILINE))
    assert shown == yaml.safe_load((EXAMPLES / "services.d" / "ingress.yaml").read_text())


@pytest.mark.parametrize("path", sorted(SITUATIONS.glob("*")), ids=lambda path: path.stem)
def test_the_example_of_each_situation_is_good(
    path: Path, either_binary: str, tmp_path: Path
) -> None:
    """HAProxy of both versions accepts it, and a newcomer can read it in a minute."""
    program = Path(either_binary).parent
    (tmp_path / "dashboard.users").write_text(f"alice:{PASSWORD}\n")
    (tmp_path / "dashboard.groups").write_text("login: alice\n")
    settings = tmp_path / "config.yaml"
    settings.write_text(path.read_text().replace("/etc/fc-frontend/", f"{tmp_path}/"))
    done = subprocess.run(
        [sys.executable, "-m", "fc_frontend", "check", "--config", str(settings)],
        env={**os.environ, "PATH": f"{program}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "accepted by HAProxy" in done.stdout
    lines = path.read_text().splitlines()
    assert len(lines) < 30
    assert lines[0].startswith("# ")


def test_there_is_an_example_for_each_situation() -> None:
    assert {path.name for path in SITUATIONS.iterdir()} == {
        "cluster-ip.yaml",
        "dashboard.yaml",
        "dual-stack.yaml",
        "http-named-port.yaml",
        "load-balancer-nodes.yaml",
        "many-sites.yaml",
        "several-frontends.yaml",
        "tcp-ingress.yaml",
        "tls-to-pods.yaml",
    }


def test_the_examples_are_good_and_name_every_field(tmp_path: Path) -> None:
    from fc_frontend.config.schema import (
        FrontendDeclaration,
        HttpDeclaration,
        RateLimitDeclaration,
        ServiceDeclaration,
    )
    from fc_frontend.config.settings import (
        AddressPoolDeclaration,
        ApiAccessDeclaration,
        ApiDeclaration,
        LoadBalancerDeclaration,
        SettingsDeclaration,
    )
    from fc_frontend.config.sites import (
        BasicAuthDeclaration,
        RedirectDeclaration,
        RewriteDeclaration,
        StickyDeclaration,
    )
    from fc_frontend.plan.checks import settings_problems

    assert not errors_in(load(str(EXAMPLES / "config.yaml")).problems)
    settings = tmp_path / "config.yaml"
    shutil.copy(EXAMPLES / "all-settings.yaml", settings)
    (tmp_path / "services.d").mkdir()
    shutil.copy(EXAMPLES / "all-fields.yaml", tmp_path / "services.d")
    declaration = load(str(settings))
    assert not errors_in(declaration.problems)
    written = yaml.safe_load(settings.read_text())
    defaults = SettingsDeclaration.model_validate({"cluster": {"nameservers": ["10.0.0.254:53"]}})
    assert SettingsDeclaration.model_validate(written) == defaults
    for name in ("cluster", "haproxy", "intervals", "trust", "untrusted"):
        model = type(getattr(defaults, name))
        assert set(written[name]) == set(model.model_fields), name
    forms = re.findall(
        r"^  # api:(?: \{.*\}|(?:\n  #   \S.*)+)$", settings.read_text(), re.MULTILINE
    )
    assert len(forms) == 3
    named = set()
    for form in forms:
        access = yaml.safe_load(form.replace("  # ", ""))
        named |= set(access["api"])
        written["cluster"] |= access
        assert not settings_problems(SettingsDeclaration.model_validate(written).model())
    assert named == set(ApiDeclaration.model_fields)
    (form,) = re.findall(
        r"^(?:# load_balancer:\n)(?:#   .*\n)+", settings.read_text(), re.MULTILINE
    )
    balancer = yaml.safe_load(form.replace("# ", "", 1).replace("\n# ", "\n"))
    balancing = SettingsDeclaration.model_validate(written | balancer)
    assert not settings_problems(balancing.model())
    assert len(balancer["load_balancer"]) == len(LoadBalancerDeclaration.model_fields)
    (pool,) = balancer["load_balancer"]["pools"].values()
    assert set(pool) == set(AddressPoolDeclaration.model_fields)
    (form,) = re.findall(r"^(?:# api_access:\n)(?:#   .*\n)+", settings.read_text(), re.MULTILINE)
    access = yaml.safe_load(form.replace("# ", "", 1).replace("\n# ", "\n"))
    SettingsDeclaration.model_validate(written | access)
    assert set(access["api_access"]) == set(ApiAccessDeclaration.model_fields)
    text = (EXAMPLES / "all-fields.yaml").read_text()
    fields = {
        **ServiceDeclaration.model_fields,
        **FrontendDeclaration.model_fields,
        **HttpDeclaration.model_fields,
        **RateLimitDeclaration.model_fields,
        **BasicAuthDeclaration.model_fields,
        **StickyDeclaration.model_fields,
        **RedirectDeclaration.model_fields,
        **RewriteDeclaration.model_fields,
    }
    missing = [field for field in fields if f"{field}:" not in text]
    assert not missing
