"""Help and version: quick, complete, and with something to copy."""

import resource
import subprocess
import sys

import pytest
from cli_run import ROOT, apart, good, here

COMMANDS = [
    "sweep",
    "train",
    "evaluate",
    "search",
    "sample",
    "edit",
    "import",
    "export",
    "report",
    "theory",
    "studio",
    "ui",
    "doctor",
    "features train",
    "data prepare",
    "data info",
    "jobs submit",
    "jobs list",
    "jobs logs",
    "jobs stop",
]


def test_help_answers_within_a_second():
    def seconds() -> float:  # of computing: other programs on the machine may take their turns
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        ran = subprocess.run([sys.executable, "-m", "cmray", "--help"], capture_output=True, text=True, check=True)
        for command in COMMANDS:
            assert f" {command.split()[0]} " in ran.stdout
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime

    best = min(seconds() for _ in range(3))
    assert best < 1, f"cmray --help takes {best:.2f} s; which import is not lazy?"


def test_help_imports_nothing_heavy():
    code = (
        "import sys, cmray.cli.main as m\n"
        "try: m.main(['--help'])\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'ray', 'mlflow', 'numpy', 'pandas', 'pydantic'} & set(sys.modules)), file=sys.stderr)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stderr.strip() == "[]"


def test_version(tmp_path):
    from cmray import __version__

    assert good(apart(tmp_path, "--version")).out.strip() == f"cmray {__version__}"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_an_example_that_names_it(command):
    ran = good(here(*command.split(), "--help"))
    text = " ".join(ran.out.split())
    assert f"Example: cmray {command}" in text
    assert "--json" in text or command in ("studio", "ui")


@pytest.mark.parametrize("command", ["", "data", "jobs"])
def test_a_group_without_a_command_shows_its_help(command):
    ran = here(*command.split())
    assert "Usage" in ran.out + ran.err
    assert "Traceback" not in ran.out + ran.err


def test_the_contract_of_this_version_is_there():
    """Every command line of the README's list can be asked for help."""
    block = (ROOT / "README.md").read_text().split("## Commands")[1].split("##")[0]
    named = {line.split()[1] for line in block.splitlines() if line.startswith("    cmray ")}
    assert named == {command.split()[0] for command in COMMANDS}
