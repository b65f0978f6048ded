"""`cmray report` of experiments that are unknown, unfinished, empty or damaged."""

import json

import pytest
from cli_run import good, here
from report_factory import curve, evaluation, experiment, teacher, trial, write


def refused(ran, *words):
    assert (ran.code, ran.out) == (2, ""), ran.err
    (line,) = ran.err.strip().splitlines()
    assert line.startswith("error: ")
    assert all(word in line for word in words), line


@pytest.fixture
def storage(tmp_path):
    folder = tmp_path / "storage"
    done = trial("heun · l2 · N=9", events=curve(9.0, 3.1), evaluations=[evaluation(3.1)])
    begun = trial("euler · l2 · N=9", status="running", events=curve(30.0))
    failed = trial("ct · N=80 fixed", status="failed", error="boom")
    write(folder, experiment(teacher(), done, begun, failed, trial("ct · mu0=0.9", status="waiting")))
    return folder


def test_an_unknown_experiment_names_the_nearest_and_writes_nothing(storage, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    refused(here("report", "fig33", "--storage", storage, "--out", tmp_path / "out"), "fig33", "did you mean 'fig3'")
    refused(here("report", "fig3", "--storage", tmp_path / "nowhere"), "no experiment 'fig3'", "nowhere", "--storage")
    assert sorted(tmp_path.rglob("*")) == before


def test_an_unfinished_experiment_is_reported_as_far_as_it_is_and_says_what_is_missing(storage, tmp_path):
    told = good(here("report", "fig3", "--storage", storage, "--out", tmp_path / "out", "--json")).json
    said = "\n".join(told["sentences"])
    assert "Best in one step: heun · l2 · N=9" in said
    assert "1 failed, 1 running, 1 waiting" in said
    assert {"table.csv", "curve.png"} <= {path.name for path in (tmp_path / "out").iterdir()}
    notes = (tmp_path / "out" / "table.md").read_text()
    for label in ("euler · l2 · N=9", "ct · N=80 fixed", "ct · mu0=0.9"):
        assert label in notes


@pytest.mark.parametrize("trials", [[], [trial("a", status="waiting")]], ids=["planned", "waiting"])
def test_an_experiment_that_has_not_begun_says_so(tmp_path, trials):
    write(tmp_path, experiment(*trials))
    told = good(here("report", "fig3", "--storage", tmp_path, "--json")).json
    assert "No trial has a finite one-step fd/digits yet." in told["sentences"]
    assert good(here("report", "fig3", "--storage", tmp_path)).err == ""


def test_a_damaged_record_is_named(storage):
    (file,) = (storage / "fig3" / "heun-l2-N=9").glob("result.json")
    file.write_text(json.dumps({"steps": "many"}))
    refused(here("report", "fig3", "--storage", storage), str(file), "is no Result", "steps")


def test_an_out_that_is_a_file_is_refused(storage, tmp_path):
    (tmp_path / "out").write_text("mine")
    refused(here("report", "fig3", "--storage", storage, "--out", tmp_path / "out"), str(tmp_path / "out"))
    assert (tmp_path / "out").read_text() == "mine"
