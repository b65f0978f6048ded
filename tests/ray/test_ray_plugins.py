"""Plug-ins on Ray: a file travels to every process, a package that a node lacks is named before anything starts."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from cli_run import CT, apart, good, write
from plugin_example import EXAMPLE, install_example

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

CHARBONNIER = {"objective": {"distance": "charbonnier"}}


def file_in(folder: Path) -> Path:
    return shutil.copyfile(EXAMPLE / "cmray_plugin_example" / "charbonnier.py", folder / "charbonnier.py")


def recorded(storage: Path) -> list[str]:
    results = [json.loads(path.read_text()) for path in storage.glob("study/*/result.json")]
    return [result["versions"]["charbonnier.py"] for result in results]


def test_a_file_reaches_ddp_workers_and_tune_s_actors_of_this_machine(tmp_path):
    panels = {"two": {"base": {"resources": {"workers": 2}}}, "one": {"base": {"seed": 1}}}
    study = write(tmp_path / "study.yaml", CT, CHARBONNIER, panels=panels)
    words = ("sweep", study, "--storage", tmp_path / "storage", "--tracking-uri", "none")
    good(apart(tmp_path / "ran", *words, CMRAY_PLUGINS=str(file_in(tmp_path))))
    one, two = recorded(tmp_path / "storage")
    assert one == two
    assert one.startswith("sha256:")


def test_a_file_travels_to_a_cluster_and_a_package_must_be_there(tmp_path, cluster):
    cluster.do("add", cpus=2)
    study = write(tmp_path / "study.yaml", CT, CHARBONNIER, panels={"one": {"base": {"seed": 1}}})
    words = ("sweep", study, "--storage", tmp_path / "storage", "--address", cluster.address, "--tracking-uri", "none")
    good(apart(tmp_path / "ran", *words, CMRAY_PLUGINS=str(file_in(tmp_path))))
    assert len(recorded(tmp_path / "storage")) == 1

    site = install_example(tmp_path / "site")  # for the driver alone
    path = os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), str(site))))
    again = write(tmp_path / "again.yaml", CT, CHARBONNIER, panels={"one": {"base": {"seed": 2}}})
    refused = apart(tmp_path / "refused", "sweep", again, *words[2:], PYTHONPATH=path)
    assert refused.code == 2
    line = refused.err.strip().splitlines()[-1]
    assert "lacks a plug-in: the plug-in cmray-plugin-example 0.1.0" in line
    assert "is not installed on" in line
