"""The README's commands name what is there."""

import runpy
import shlex

import pytest
from cli_run import ROOT, good, here

from cmray.config.load import load_raw


@pytest.fixture(scope="module")
def command():
    return runpy.run_path(str(ROOT / ".ci" / "readme_command.py"))["command"]


def files_named(text: str) -> list[str]:
    return [w for w in shlex.split(text) if w.endswith((".yaml", ".txt", ".toml", ".py"))]


def test_the_quickstart_command_is_one_line_and_sweeps_the_quickstart(command):
    text = command("quickstart")
    assert "\n" not in text
    assert "cmray sweep experiments/quickstart.yaml" in text
    assert "constraints.txt" in text


def test_the_test_command_is_one_line_and_runs_pytest(command):
    text = command("tests")
    assert "\n" not in text
    assert "pytest" in text
    assert "[test]" in text


@pytest.mark.parametrize("name", ["quickstart", "tests"])
def test_the_files_they_name_exist(command, name):
    named = files_named(command(name))
    assert named
    for file in named:
        assert (ROOT / file).is_file(), f"the README names {file}"


def test_every_shipped_experiment_file_can_be_read_or_planned(tmp_path):
    for file in sorted((ROOT / "experiments").rglob("*.yaml")):
        raw = load_raw(file)
        if raw.values.get("panels") and "name" in raw.values["data"]:  # others: config/test_paper_experiments.py
            ran = good(here("sweep", file, "--dry-run", "--json", "--storage", tmp_path / "storage"))
            assert ran.json["trials"]
    assert not (tmp_path / "storage").exists()
