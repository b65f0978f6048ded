"""Help and version: quick, complete, and with something to copy."""

import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import typer
from cli_run import ROOT, apart, good, here
from shell_words import calls, check

from cmray.cli.exits import MEANINGS
from cmray.cli.main import app


def commands(group: Any, before: str = "") -> Iterator[str]:
    """The command lines of a group and of the groups in it."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, f"{before}{name} ")
        else:
            yield f"{before}{name}"


COMMANDS = list(commands(typer.main.get_command(app)))


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


def test_there_are_as_many_commands_as_were_written():
    assert len(COMMANDS) == len(set(COMMANDS)) == 21


@pytest.mark.parametrize("command", COMMANDS)
def test_the_examples_of_the_help_are_commands_that_exist(command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    ran = here(*command.split(), "--help")
    lines = [line.strip(" │").removeprefix("Example: ") for line in ran.out.splitlines()]
    examples = [line for line in lines if line.startswith(f"cmray {command} ") or line == f"cmray {command}"]
    assert examples
    for line in examples:
        (words,) = calls(line)
        check(words)


@pytest.mark.parametrize(
    ("typed", "offered"), [("cmray se", "search"), ("cmray data p", "prepare"), ("cmray sweep --dry", "--dry-run")]
)
def test_the_shell_completes_commands_and_options(typed, offered):
    asked = {"_CMRAY_COMPLETE": "complete_bash", "COMP_WORDS": typed, "COMP_CWORD": str(len(typed.split()) - 1)}
    code = "import sys; sys.argv = ['cmray']; from cmray.cli.main import main; main()"
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ, **asked}
    )
    assert offered in ran.stdout.split()


def test_exit_codes_are_told_where_they_are_made():
    assert sorted(MEANINGS) == [0, 1, 2, 3, 130]
    assert here("--version").code == 0
    assert here("sweep").code == here("sweep", "--nonsense").code == here("nonsense").code == here().code == 2


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
