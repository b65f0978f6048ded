"""`cmray init`: the experiment files that come with cmray, from a tree and from a wheel."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
from cli_run import good, here

ROOT = Path(__file__).parents[2]


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.yaml")}


def test_all_files_are_copied_and_run_where_they_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    told = good(here("init"))
    assert "next: cmray sweep experiments/quickstart.yaml" in told.err + told.out
    assert files(tmp_path / "experiments") == files(ROOT / "experiments")
    planned = good(here("sweep", "experiments/quickstart.yaml", "--dry-run"))
    assert "Plan: train 8 of 8 models" in planned.out + planned.err
    told = good(here("init", "again", "--json"))
    assert set(told.json["files"]) == set(files(ROOT / "experiments"))


def test_an_empty_folder_that_somebody_stands_in_is_filled(tmp_path, monkeypatch):
    place = tmp_path / "it's here"
    place.mkdir()
    monkeypatch.chdir(place)
    number = place.stat().st_ino
    good(here("init", "."))
    assert place.stat().st_ino == number
    assert files(place) == files(ROOT / "experiments")
    assert {path.name for path in place.iterdir()} == {path.name for path in (ROOT / "experiments").iterdir()}
    told = good(here("init", "more of it"))
    line = (told.out + told.err).partition("next: ")[2].replace("\n", " ")
    assert shlex.split(line) == ["cmray", "sweep", "more of it/quickstart.yaml"]


def test_who_types_what_the_help_says_outside_of_a_tree_is_led_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ran = here("sweep", "experiments/quickstart.yaml")
    assert ran.code == 2
    assert "does not exist; `cmray init experiments` makes a folder of those that come with cmray" in ran.err
    assert "cmray init" not in here("sweep", "experiments/mine.yaml").err


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda folder: (folder.mkdir(), (folder / "mine.yaml").write_text("")), "is not an empty folder"),
        (lambda folder: folder.write_text(""), "is not an empty folder"),
        (lambda folder: folder.symlink_to(folder.parent), "is not an empty folder"),
    ],
    ids=["a folder with files", "a file", "a link"],
)
def test_nothing_is_written_over(tmp_path, make, complaint):
    make(tmp_path / "there")
    before = sorted(tmp_path.rglob("*"))
    ran = here("init", tmp_path / "there")
    assert ran.code == 2
    assert complaint in ran.err
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_wheel_works_outside_the_tree(tmp_path):
    """It holds weights, the page of reports, published numbers and experiments, and runs them."""
    tree = tmp_path / "tree"
    subprocess.run(["git", "clone", "-q", "--no-hardlinks", ROOT, tree], check=True)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    wheels = tmp_path / "wheels"
    subprocess.run([*pip, "wheel", "-q", "--no-deps", "-w", wheels, tree], check=True, timeout=200)
    (wheel,) = wheels.iterdir()
    inside = set(zipfile.ZipFile(wheel).namelist())
    for part in ("metrics/weights", "report/page", "report/published_data"):
        here_ = {f"cmray/{path.relative_to(ROOT / 'cmray').as_posix()}" for path in (ROOT / "cmray" / part).iterdir()}
        assert here_ <= inside, part
    site = Path(sysconfig.get_path("purelib", vars={"base": str(tmp_path / "installed")}))
    installing = [*pip, "install", "-q", "--no-deps", "--ignore-installed", "--prefix", tmp_path / "installed", wheel]
    subprocess.run(installing, check=True, timeout=100)
    desk = tmp_path / "desk"
    desk.mkdir()
    run = "import sys; sys.path.insert(0, sys.argv.pop(1)); from cmray.cli.main import main; main()"

    def cmray(*words: str) -> str:
        done = subprocess.run(
            [sys.executable, "-P", "-c", run, site, *words], cwd=desk, capture_output=True, text=True, timeout=100
        )
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    assert set(json.loads(cmray("init", "--json").strip())["files"]) == set(files(ROOT / "experiments"))
    assert files(desk / "experiments") == files(ROOT / "experiments")
    small = ("--set", "train.steps=120", "--set", "train.batch_size=16", "--set", "curve=null")
    cmray("train", "experiments/presets/digits-edm.yaml", *small, "--tracking-uri", "none")
    assert "cmray-data" in cmray("report", "digits-edm")
