"""bash, zsh and fish complete typed words with the scripts that `completion` prints."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fc_frontend.cli import COMMANDS
from tests.support.terminal import Terminal
from tests.test_cli import GOOD, config, fc

ROOT = Path(__file__).parent.parent


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """Return an environment with `fc-frontend` in PATH, two services, no shell settings."""
    programs = tmp_path / "bin"
    programs.mkdir()
    program = programs / "fc-frontend"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m fc_frontend "$@"\n')
    program.chmod(0o755)
    state = tmp_path / "state"
    text = GOOD + f"  shipping: {{pod_port: 80}}\nstate_directory: {state}\n"
    return {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "HOME": str(tmp_path),
        "LANG": "C.UTF-8",
        "FC_FRONTEND_CONFIG": config(tmp_path, text),
    }


def shell(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.fail(f"{name} is missing: apt install {name}")
    return found


def write(directory: Path, name: str) -> Path:
    """Write the script for shell `name` to a file whose name zsh accepts for a function."""
    path = directory / "_fc-frontend"
    path.write_text(fc("completion", name).stdout)
    return path


@pytest.mark.extended
def test_bash(environ: dict[str, str], tmp_path: Path) -> None:
    script = write(tmp_path, "bash")
    with Terminal([shell("bash"), "--norc", "--noprofile", "-i"], environ) as terminal:
        terminal.type(f"PS1=ready'> '; source {script}\n")
        terminal.until("ready> ")
        for typed, completed in (
            ("fc-frontend expl\t", "explain "),
            ("fc-frontend explain shi\t", "shipping "),
            ("fc-frontend check --form\t", "--format "),
            ("fc-frontend check --format nag\t", "nagios "),
        ):
            terminal.type(typed)
            terminal.until(typed.rstrip("\t").rpartition(" ")[0] + " " + completed)
            terminal.type("\x15")
        terminal.type("fc-frontend drain sh\t\t")
        assert "shipping" in terminal.until("shop")


@pytest.mark.extended
def test_zsh(environ: dict[str, str], tmp_path: Path) -> None:
    write(tmp_path, "zsh")
    with Terminal([shell("zsh"), "-f", "-i"], environ) as terminal:
        # As in the package: a file in fpath, loaded when it is first needed.
        terminal.type(
            f"PROMPT=ready'> '; fpath=({tmp_path} $fpath); autoload -U compinit; compinit -u -D\n"
        )
        terminal.until("ready> ")
        for typed, completed in (
            ("fc-frontend expl\t", "ain"),
            ("fc-frontend explain shi\t", "pping"),
            ("fc-frontend check --form\t", "at"),
        ):
            terminal.type(typed)
            terminal.until(completed)
            terminal.type("\x15")
        terminal.type("fc-frontend d\t")
        # The description of each command is shown beside it.
        terminal.until(COMMANDS["doctor"][:30])


@pytest.mark.extended
def test_fish(environ: dict[str, str], tmp_path: Path) -> None:
    script = write(tmp_path, "fish")

    def completions(line: str) -> dict[str, str]:
        done = subprocess.run(
            [shell("fish"), "--no-config", "-c", f"source {script}; complete -C '{line}'"],
            env=environ,
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        rows = (row.partition("\t") for row in done.stdout.splitlines())
        return {name: text for name, _, text in rows}

    assert completions("fc-frontend d") == {n: COMMANDS[n] for n in COMMANDS if n[0] == "d"}
    assert set(completions("fc-frontend explain ")) >= {"shop", "shipping"}
    assert "--wait" in completions("fc-frontend drain --")


def asked(environ: dict[str, str], *words: str) -> list[str]:
    """Return the completions that fc-frontend offers a shell for the last of `words`."""
    done = subprocess.run(
        [str(Path(environ["PATH"].split(":")[0]) / "fc-frontend")],
        env={
            **environ,
            "_FC_FRONTEND_COMPLETE": "bash_complete",
            "COMP_WORDS": "\n".join(["fc-frontend", *words]),
            "COMP_CWORD": str(len(words)),
        },
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stderr == ""
    return [line.removeprefix("plain,") for line in done.stdout.splitlines() if line]


def test_pods_and_entries_are_completed_from_what_is_stored(environ: dict[str, str]) -> None:
    from fc_frontend.config.declare import load
    from fc_frontend.plan.model import Answer, Endpoint, Freshness, Kind
    from fc_frontend.stored import save_answers

    declaration = load(environ["FC_FRONTEND_CONFIG"])
    state = Path(declaration.settings.state_directory)
    state.mkdir()
    answer = Answer(
        kind=Kind.HEADLESS,
        reason="",
        freshness=Freshness.FRESH,
        endpoints=(Endpoint("10.1.0.1", 8080), Endpoint("10.1.0.2", 8080)),
    )
    save_answers(declaration.settings, declaration.services, {"shop": answer})
    assert asked(environ, "drain", "shop", "") == ["10.1.0.1", "10.1.0.2"]
    assert asked(environ, "drain", "shipping", "") == []
    assert asked(environ, "undrain", "shop", "10.1.0.2") == ["10.1.0.2"]
    assert asked(environ, "rollback", "") == []
    # Words given already are not offered again.
    assert asked(environ, "resolve", "shop", "") == ["shipping"]
    # The settings file is the one named on the command line, before or after the command.
    other = state / "other.yaml"
    other.write_text("services: {mail: {pod_port: 25}}\n")
    for words in (("-c", str(other), "explain", ""), ("explain", "-c", str(other), "")):
        assert asked(environ, *words) == ["mail"]


def test_words_of_kubeconfig_are_completed(environ: dict[str, str]) -> None:
    assert asked(environ, "kubeconfig", "") == ["list", "revoke"]
    assert asked(environ, "kubeconfig", "revoke", "") == []


def test_what_cannot_be_read_completes_to_nothing(environ: dict[str, str], tmp_path: Path) -> None:
    broken = tmp_path / "broken.json"
    broken.write_text(json.dumps({"services": {"a b\n$(x)": {"pod_port": 1}, "ok": 5}}))
    for path in (str(broken), "/nonexistent"):
        environ["FC_FRONTEND_CONFIG"] = path
        for words in (("explain", ""), ("drain", "x", ""), ("rollback", "")):
            assert asked(environ, *words) == []


def test_a_shell_that_is_not_known() -> None:
    done = fc("completion", "tcsh")
    assert done.returncode == 2
    assert "bash" in done.stderr
