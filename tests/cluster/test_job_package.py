"""What a job carries: the experiment, this very code, and where it came from."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from cli_run import CT, write

import cmray
from cmray.cluster.jobs import Request, pack
from cmray.config.bundle import bundle_experiment


@pytest.fixture
def request_(tmp_path) -> Request:
    file = write(tmp_path / "my study.yaml", CT, name="my study", panels={"N": {"grid": {"seed": [1, 2]}}})
    return Request(bundle_experiment(file), "s3://bucket/folder")


def test_the_copy_runs_and_knows_its_revision(request_, tmp_path):
    folder = tmp_path / "job"
    folder.mkdir()
    pack(request_.bundle, folder, "abc+changes")
    code = (
        "import sys, cmray; from cmray.engine.versions import git_revision, versions\n"
        "from cmray.config.bundle import bundle_experiment; from pathlib import Path\n"
        "print(cmray.__file__); print(git_revision()); print(versions()['cmray'])\n"
        "print(bundle_experiment(Path(sys.argv[1])).name)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code, request_.bundle.file], cwd=folder, capture_output=True, text=True, check=True,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(folder)},
    )  # fmt: skip
    assert ran.stdout.splitlines() == [
        str(folder / "cmray" / "__init__.py"),
        "abc+changes",
        cmray.__version__,
        "my study",
    ]
    here = {p.relative_to(Path(cmray.__file__).parent) for p in Path(cmray.__file__).parent.rglob("*.*")
            if "__pycache__" not in p.parts and p.is_file()}  # fmt: skip
    there = {p.relative_to(folder / "cmray") for p in (folder / "cmray").rglob("*.*") if "__pycache__" not in p.parts}
    assert there - here == {Path("revision.txt")}
    assert here <= there
    assert not (Path(cmray.__file__).parent / "revision.txt").exists(), "the tree itself has git"


def test_a_job_is_named_by_what_will_be_there_in_the_end(request_):
    assert request_.name == f"my-study-{request_.hash[:10]}"
    for same in ({"max_concurrent": 2}, {"max_hours": 1.0}, {"tracking_uri": "none"}):
        assert replace(request_, **same).name == request_.name
    others = [replace(request_, storage="/nfs"), replace(request_, only=("N",))]
    assert len({r.name for r in (request_, *others)}) == 3


def test_the_command_of_a_job(request_):
    full = replace(request_, only=("N",), tracking_uri="http://head:5000", max_concurrent=2, max_hours=1.5)
    assert full.words() == [
        "python", "-m", "cmray", "sweep", "my study.yaml", "--address", "auto", "--storage", "s3://bucket/folder",
        "--only", "N", "--tracking-uri", "http://head:5000", "--max-concurrent", "2", "--max-hours", "1.5",
    ]  # fmt: skip
