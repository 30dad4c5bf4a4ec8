"""The manual pages match --help, and the programs that read such pages report no fault."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from fc_frontend.cli import COMMANDS
from fc_frontend.cli.manual import escaped, filled
from tests.test_cli import fc, help_of


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write all pages, as in a package, and return their directory."""
    directory = tmp_path_factory.mktemp("man") / "man1"
    assert fc("man", "--output", str(directory), SOURCE_DATE_EPOCH="86400").returncode == 0
    return directory


def program(name: str, package: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.fail(f"{name} is missing: apt install {package}")
    return found


def said(*argv: str) -> str:
    """Return a program's standard output and standard error."""
    done = subprocess.run(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
        check=False,
        env={"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "MANWIDTH": "80"},
    )
    return done.stdout


def shown(page: Path) -> str:
    """Return the page as displayed to a reader."""
    # Bold and underlined letters are overstruck.
    return re.sub(".\b", "", said(program("mandoc", "mandoc"), "-T", "utf8", str(page)))


@pytest.mark.extended
def test_there_is_a_page_for_each_command(directory: Path) -> None:
    names = {"fc-frontend.1", *(f"fc-frontend-{name}.1" for name in COMMANDS)}
    assert {path.name for path in directory.iterdir()} == names


@pytest.mark.extended
def test_groff_and_mandoc_find_no_fault(directory: Path) -> None:
    groff, mandoc = program("groff", "groff-base"), program("mandoc", "mandoc")
    for page in directory.iterdir():
        assert said(mandoc, "-T", "lint", "-W", "style", str(page)) == ""
        # `man --warnings` runs this.
        assert said(groff, "-man", "-T", "utf8", "-ww", "-z", str(page)) == ""


@pytest.mark.extended
def test_a_fault_would_be_found(tmp_path: Path) -> None:
    page = tmp_path / "x.1"
    page.write_text(".TH X 1 1970-01-01\n.SH NAME\nx \\- y\n.NOSUCH\n")
    assert "NOSUCH" in said(program("mandoc", "mandoc"), "-T", "lint", "-W", "style", str(page))
    groff = program("groff", "groff-base")
    assert "NOSUCH" in said(groff, "-man", "-T", "utf8", "-ww", "-z", str(page))


@pytest.mark.extended
def test_pages_say_what_help_says(directory: Path) -> None:
    """The words are the same; only line breaks differ."""

    def words(text: str) -> str:
        return re.sub(r"[\s`]+", " ", text)

    for name in COMMANDS:
        page = words(re.sub("[‐-]\n *", "-", shown(directory / f"fc-frontend-{name}.1")))
        for option in re.findall(r"--[a-z][a-z-]+", help_of(name)):
            assert option in page, (name, option)
        assert COMMANDS[name].replace("`", "").rstrip(".") in page
        assert "DESCRIPTION" in page
    drain = words(shown(directory / "fc-frontend-drain.1"))
    assert "EXIT STATUS 0 drained; with --wait, no connection is open 1 no such" in drain
    main = words(shown(directory / "fc-frontend.1"))
    for said_there in ("/etc/fc-frontend/services.d/*.cfg", "FC_FRONTEND_CONFIG", "EXIT STATUS"):
        assert said_there in main
    assert all(f"fc-frontend-{name}(1)" in main for name in COMMANDS)


def test_the_date_is_the_sources(directory: Path) -> None:
    page = (directory / "fc-frontend.1").read_text()
    assert page.startswith('.TH FC\\-FRONTEND 1 1970-01-02 "fc-frontend ')
    assert fc("man", SOURCE_DATE_EPOCH="86400").stdout == page


@pytest.mark.extended
@pytest.mark.parametrize(
    "text",
    [
        ".TH at the beginning",
        "'br at the beginning",
        "a back\\slash, \\fBbold\\fR, \\n(.k and \\*(lq",
        "quotes \" ' ` and ~ ^ - --option",
        "umlaut ü, arrow → and face 🙂",
    ],
)
def test_every_letter_comes_out_as_it_went_in(tmp_path: Path, text: str) -> None:
    page = tmp_path / "x.1"
    body = "\n".join(filled(text.replace("`", "")))
    page.write_text(f'.TH X 1 1970-01-01 "" ""\n.SH NAME\nx \\- {escaped(text)}\n.PP\n{body}\n')
    out = re.sub(r"\s+", " ", shown(page))
    assert f"x - {text}" in out
    assert out.count(" ".join(text.replace("`", "").split())) >= 1
    assert page.read_text().isascii()


def test_a_command_that_is_not_there_and_a_directory_that_cannot_be() -> None:
    unknown = fc("man", "nonsense")
    assert unknown.returncode == 2
    assert "there are: check, " in unknown.stderr
    nowhere = fc("man", "--output", "/dev/null/x")
    assert nowhere.returncode in (2, 3)
    assert "/dev/null" in nowhere.stderr
