"""Bad input: one line that names what was found and what is allowed, exit code 2, before anything is written."""

from __future__ import annotations

import shutil
import socket
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_run import CD, CT, EDM, Ran, closed_port, good, here, snapshot, write

from cmray.datasets import ImageDataset
from cmray.datasets.whole import write_shards

PANELS: dict[str, Any] = {"panels": {"one": {"grid": {"objective.num_sigmas": [5, 9]}}}}
MEASURED: dict[str, Any] = {"evaluate": {"num_samples": 64, "nfe": [1, 2]}}


def refused(ran: Ran, *words: str) -> str:
    """Asserts that a command ended as bad input should; returns the line."""
    lines = [line for line in ran.err.strip().splitlines() if not line.startswith(("cmray sweep ", "cmray train "))]
    assert ran.code == 2, f"exit code {ran.code}\n{ran.out}\n{ran.err}"
    assert ran.out == ""
    assert len(lines) == 1, f"more than one line:\n{ran.err}"
    assert lines[0].startswith("error: ")
    assert "Traceback" not in ran.err
    for word in words:
        assert word in lines[0], f"'{word}' is not in: {lines[0]}"
    return lines[0]


@pytest.fixture
def desk(tmp_path, monkeypatch) -> Path:
    """An empty working directory."""
    folder = tmp_path / "desk"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def swept(desk: Path, file: Path, *more: object, command: str = "sweep") -> Ran:
    """Runs a file; whatever it says, neither the storage folder nor the working directory may change."""
    before = snapshot(desk)
    ran = here(command, file, "--storage", desk / "storage", *more)
    assert snapshot(desk) == before, "something was written"
    return ran


# ---------------------------------------------------------------- experiment files

FILES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "dataset": ({"data": {"name": "digit"}}, ["digit", "did you mean 'digits'"]),
    "data folder missing": ({"data": {"name": None, "path": "nowhere"}}, ["data.path", "nowhere", "does not exist"]),
    "two datasets": ({"data": {"name": "digits", "path": "x"}}, ["data", "either data.name"]),
    "key": ({"train": {"stepz": 3}}, ["train.stepz", "did you mean 'steps'"]),
    "key at the top": ({"panel": {}}, ["panel", "did you mean 'panels'"]),
    "key in a component": ({"objective": {"num_sigma": 4}}, ["objective", "num_sigma", "did you mean 'num_sigmas'"]),
    "type": ({"train": {"steps": "many"}}, ["train.steps", "'many'"]),
    "no steps": ({"train": {"steps": 0}}, ["train.steps"]),
    "metric": ({"evaluate": {"metric": "fd/digit"}}, ["evaluate.metric", "did you mean 'fd/digits'"]),
    "metric of the curve": ({"curve": {"metric": "fid"}}, ["curve.metric", "fd/digits"]),
    "solver": ({**CD, "objective": {"name": "cd", "solver": "huen"}}, ["solver", "huen", "did you mean 'heun'"]),
    "distance": ({"objective": {"distance": "l3"}}, ["distance", "l3", "l1, l2"]),
    "objective": ({"objective": {"name": "ctt"}}, ["objective", "ctt", "did you mean 'ct'"]),
    "net": ({"net": {"name": "mpl"}}, ["net", "did you mean 'mlp'"]),
    "N below 2": ({"objective": {"num_sigmas": 1}}, ["num_sigmas", "1"]),
    "N below 2 in a grid": ({"panels": {"one": {"grid": {"objective.num_sigmas": [1]}}}}, ["num_sigmas", "panel one"]),
    "mu": ({"objective": {"mu": 1.5}}, ["mu", "1.5"]),
    "noise range": ({"noise": {"sigma_min": 90}}, ["sigma_min 90", "sigma_max 80"]),
    "batch and parts": ({"train": {"accumulate": 3}}, ["batch_size 32", "accumulate 3"]),
    "grid over a missing field": (
        {"panels": {"one": {"grid": {"objective.num_sigma": [3]}}}},
        ["num_sigma", "did you mean 'num_sigmas'", "panel one"],
    ),
    "grid over a missing section": (
        {"panels": {"one": {"grid": {"trian.steps": [3]}}}},
        ["trian.steps", "did you mean 'train'"],
    ),
    "grid below a number": ({"panels": {"one": {"grid": {"train.steps.more": [3]}}}}, ["train.steps"]),
    "empty grid": ({"panels": {"one": {"grid": {"objective.mu": []}}}}, ["objective.mu", "empty"]),
    "panel key": ({"panels": {"one": {"grids": {}}}}, ["grids", "did you mean 'grid'"]),
    "teacher file missing": ({**CD, "teacher": {"experiment": "t.yaml"}}, ["t.yaml", "does not exist"]),
    "teacher checkpoint missing": ({**CD, "teacher": {"checkpoint": "c"}}, ["/c", "does not exist"]),
    "no teacher": (CD, ["needs a teacher"]),
    "workers": (
        {"resources": {"workers": 999}, "train": {"batch_size": 999}},
        ["resources.workers 999", "this machine"],
    ),
    "cpus": ({"resources": {"cpus_per_worker": 999}}, ["cpus_per_worker 999", "this machine has"]),
    "gpus": ({"resources": {"gpus_per_worker": 999}}, ["gpus_per_worker 999", "this machine has"]),
    "workers in one trial of many": (
        {"panels": {"one": {"grid": {"resources.workers": [1, 32]}}}},
        ["resources.workers 32", "this machine"],
    ),
    "search without room": ({**MEASURED, "search": {"nfe": [5]}}, ["search.nfe 5", "N is 5"]),
    "search without evaluate": ({"evaluate": None, "search": {"nfe": [2]}}, ["search", "evaluate"]),
    "times out of range": ({"evaluate": {"times": {2: [99, 1]}}}, ["evaluate.times.2", "99"]),
    "times ascending": ({"evaluate": {"times": {2: [1, 80]}}}, ["times.2", "descending"]),
    "times out of a trial's range": (
        {"evaluate": {"times": {2: [80, 1]}}, "panels": {"one": {"grid": {"noise.sigma_max": [80, 40]}}}},
        ["times", "sigma_max 40"],
    ),
    "even teacher budget": ({"evaluate": {"teacher_nfe": [2]}}, ["teacher_nfe", "2"]),
    "extends": ({"extends": "base.yaml"}, ["base.yaml", "does not exist", "extends it"]),
    "name": ({"name": "a/b"}, ["name", "a/b"]),
}


@pytest.mark.parametrize("case", FILES)
def test_a_file_that_cannot_run(desk, case):
    fields, words = FILES[case]
    file = write(desk / "study.yaml", CT, PANELS, MEASURED, fields)
    line = refused(swept(desk, file), *words)
    assert "study.yaml" in line or case in ("workers", "cpus", "gpus", "workers in one trial of many")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, ["study.yaml", "does not exist"]),
        ("a: [1, 2", ["study.yaml", "not valid YAML", "line"]),
        ("- 1", ["study.yaml", "mapping", "list"]),
        ("name: x\nname: y\n", ["study.yaml", "'name' is given twice"]),
        ("extends: study.yaml\nname: x\n", ["study.yaml", "circle"]),
        ("\x00", ["study.yaml"]),
    ],
)
def test_a_file_that_is_none(desk, text, words):
    file = desk / "study.yaml"
    if text is not None:
        file.write_text(text)
    refused(swept(desk, file), *words)


def test_a_folder_instead_of_a_file(desk):
    refused(swept(desk, desk), "cannot be read")


def test_a_name_with_brackets_is_shown_as_it_is(desk):
    line = refused(swept(desk, desk / "[bold]no[/nothing].yaml"), "[bold]no[/nothing].yaml")
    assert "does not exist" in line


@pytest.fixture
def study(desk) -> Path:
    return write(desk / "study.yaml", CT, PANELS, MEASURED)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--only", "ones"], ["--only ones", "did you mean 'one'"]),
        (["--set", "train.steps"], ["--set train.steps", "key=value"]),
        (["--set", "=3"], ["--set =3", "key=value"]),
        (["--set", "train.steps=[1"], ["--set train.steps=[1", "not valid YAML"]),
        (["--set", "train.stepz=1"], ["--set train.stepz=1", "did you mean 'steps'"]),
        (["--set", "train.steps=-1"], ["train.steps", "-1"]),
        (["--max-concurrent", "0"], ["--max-concurrent"]),
        (["--max-hours", "0"], ["--max-hours", "0 is no time", "above 0"]),
        (["--max-hours", "-0.5"], ["-0.5 is no time"]),
        (["--max-hours", "nan"], ["nan is no time"]),
        (["--max-hours", "soon"], ["--max-hours", "valid number"]),
        (["--set", "stopping={name: asha, grace: 1}"], ["stopping", "curve"]),
        (["--max-concurent", "1"], ["--max-concurent", "--max-concurrent"]),
        (["--tracking-uri", "ftp://somewhere"], ["ftp"]),
        (["--tracking-uri", "http://"], ["names no host"]),
        (["--tracking-uri", "nonsense"], ["nonsense"]),
        (["--address", "not an address"], ["not an address"]),
        (["another.yaml"], ["another.yaml"]),
    ],
)
def test_options_of_a_sweep(desk, study, more, words):
    refused(swept(desk, study, *more), *words)


def test_an_address_that_nobody_answers(desk, study):
    """Ray would try for minutes."""
    port, began = closed_port(), time.monotonic()
    refused(
        swept(desk, study, "--address", f"127.0.0.1:{port}"), f"no Ray cluster answers at 127.0.0.1:{port}", "refused"
    )
    refused(swept(desk, study, "--address", f"ray://127.0.0.1:{port}"), "Ray Client", "http://127.0.0.1:8265")
    assert time.monotonic() - began < 20


def test_an_address_in_the_environment(desk, study, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{closed_port()}")
    refused(swept(desk, study), "no Ray cluster answers at 127.0.0.1")


def test_a_sweep_of_a_single_run(desk):
    refused(swept(desk, write(desk / "study.yaml", CT)), "no panels", "cmray train")


def test_training_of_a_sweep(desk, study):
    refused(swept(desk, study, command="train"), "has panels (one)", "cmray sweep")


def test_a_training_that_does_not_fit(desk):
    file = write(desk / "study.yaml", EDM, resources={"workers": 32})
    refused(swept(desk, file, command="train"), "resources.workers 32", "this machine has")


def test_a_word_for_resume(desk):
    file = write(desk / "study.yaml", EDM)
    refused(swept(desk, file, "--resume", "always", command="train"), "'always'", "auto, never")


@pytest.mark.parametrize("command", ["sweep", "train"])
def test_a_storage_folder_that_cannot_be_made(desk, command):
    """Below a file nobody can make a folder, not even root."""
    (desk / "file").write_text("")
    file = write(desk / "study.yaml", CT, PANELS if command == "sweep" else {})
    before = snapshot(desk)
    ran = here(command, file, "--storage", desk / "file" / "below")
    lines = ran.err.strip().splitlines()
    assert ran.code == 2
    assert [line for line in lines if line.startswith("error: ")] == lines[-1:]
    assert "cannot be written" in lines[-1]
    assert "Traceback" not in ran.err
    assert snapshot(desk) == before


# ---------------------------------------------------------------- a teacher of another shape


@pytest.fixture(scope="module")
def small_teacher(tmp_path_factory) -> Path:
    """A checkpoint trained on images of 3x6x6."""
    folder = tmp_path_factory.mktemp("small")
    images = np.random.default_rng(0).integers(0, 256, (40, 3, 6, 6), dtype=np.uint8)
    write_shards(ImageDataset("squares", "all", "made by a test", images, None, ()), folder / "squares", 2)
    file = write(folder / "teacher.yaml", EDM, data={"name": None, "path": str(folder / "squares")}, curve=None)
    told = good(here("train", file, "--storage", folder / "storage", "--tracking-uri", "none", "--json")).json
    return folder / "storage" / told["trial"] / "checkpoints" / told["result"]["checkpoint"]


def test_a_teacher_of_another_shape(desk, small_teacher):
    file = write(desk / "study.yaml", CD, PANELS, teacher={"checkpoint": str(small_teacher)})
    refused(swept(desk, file), "study.yaml", "teacher.checkpoint", "[3, 6, 6]", "[1, 8, 8]")


def test_a_teacher_that_is_no_denoiser(desk, models):
    (checkpoint,) = (models.storage / models.student / "checkpoints").iterdir()
    file = write(desk / "study.yaml", CD, PANELS, teacher={"checkpoint": str(checkpoint)})
    refused(swept(desk, file), "study.yaml", "cd", "denoiser")


def test_a_teacher_with_another_net(desk, models):
    (checkpoint,) = (models.storage / models.teacher / "checkpoints").iterdir()
    file = write(desk / "study.yaml", CD, PANELS, teacher={"checkpoint": str(checkpoint)}, net={"width": 24})
    refused(swept(desk, file), "study.yaml", "objective.init", "24", "16")


def test_a_damaged_teacher(desk, models):
    shutil.copytree(next((models.storage / models.teacher / "checkpoints").iterdir()), desk / "copy")
    (desk / "copy" / "meta.json").write_text("{")
    file = write(desk / "study.yaml", CD, PANELS, teacher={"checkpoint": "copy"})
    refused(swept(desk, file), "study.yaml", "copy/meta.json", "damaged")


# ---------------------------------------------------------------- commands on models

STUDENT, TEACHER = "<student>", "<teacher>"

COMMANDS: list[tuple[list[str], list[str]]] = [
    (["evaluate", "student/ct"], ["student/ct", "did you mean 'student/cd-"]),
    (["evaluate", "nothing at all"], ["nothing at all", "allowed: "]),
    (["evaluate", "0123456789abcdef0123456789abcdef"], ["0123456789abcdef"]),
    (["sample", "", "--out", "x.png"], ["is the beginning of 2 trials", "write more"]),
    (["report", "studnet"], ["studnet", "did you mean 'student'"]),
    (["evaluate", STUDENT, "--times", "0.8,80"], ["descend"]),
    (["evaluate", STUDENT, "--times", "99,1"], ["sigma_max 80", "99"]),
    (["evaluate", STUDENT, "--times", "80,0.002"], ["sigma_min 0.002"]),
    (["evaluate", STUDENT, "--times", "80,a"], ["--times", "80,a"]),
    (["evaluate", STUDENT, "--times", "80,1", "--nfe", "3"], ["--times gives 2", "--nfe is 3"]),
    (["evaluate", STUDENT, "--nfe", "0"], ["nfe is 0"]),
    (["evaluate", STUDENT, "--nfe", "1,,2"], ["--nfe", "1,,2"]),
    (["evaluate", STUDENT, "--metric", "fid"], ["--metric", "fid", "fd/digits"]),
    (["evaluate", STUDENT, "--num-samples", "1"], ["--num-samples"]),
    (["evaluate", STUDENT, "--parallel", "0"], ["--parallel"]),
    (["evaluate", STUDENT, "--parallel", "999"], ["--parallel 999", "this machine has"]),
    (["evaluate", TEACHER, "--times", "80,1"], ["denoiser"]),
    (["evaluate", TEACHER, "--nfe", "2"], ["nfe 2 is even"]),
    (["search", TEACHER], ["denoiser", "consistency models"]),
    (["search", STUDENT, "--nfe", "1"], ["--nfe 1", "at least 2"]),
    (["search", STUDENT, "--nfe", "2,2"], ["distinct"]),
    (["search", STUDENT, "--nfe", "9"], ["nfe 9", "N is 9"]),
    (["search", STUDENT, "--num-sigmas", "2"], ["--num-sigmas"]),
    (["search", STUDENT, "--nfe", "4", "--num-sigmas", "4"], ["nfe 4", "num_sigmas 4"]),
    (["search", STUDENT, "--parallel", "999"], ["--parallel 999", "this machine has"]),
    (["sample", STUDENT], ["--out"]),
    (["sample", STUDENT, "--out", "x.gif"], ["x.gif", ".png", ".npz"]),
    (["sample", STUDENT, "--out", "missing/x.png"], ["missing", "does not exist"]),
    (["sample", STUDENT, "--out", "."], ["not an empty folder"]),
    (["sample", STUDENT, "--out", "x.png", "--class", "3"], ["--class", "not class-conditional"]),
    (["sample", STUDENT, "--out", "x.png", "--weights", "ema 0.5"], ["ema 0.5", "student, ema 0.9"]),
    (["sample", STUDENT, "--out", "x.png", "--num", "0"], ["--num"]),
    (["sample", STUDENT, "--out", "x.png", "--times", "1,80"], ["descend"]),
    (["sample", TEACHER, "--out", "x.png", "--times", "80,1"], ["denoiser"]),
    (["data", "prepare", "digit", "--out", "d"], ["digit", "did you mean 'digits'"]),
    (["data", "prepare", "digits", "--out", "d", "--shards", "0"], ["--shards is 0"]),
    (["data", "prepare", "digits", "--out", "d", "--shards", "99999"], ["--shards is 99999", "1797"]),
    (["data", "prepare", "digits", "--out", "."], ["exists and is not empty"]),
    (["data", "info", "missing"], ["missing", "does not exist", "cmray data prepare"]),
    (["data", "info", "."], ["manifest.json"]),
    (["ui", "--port", "0"], ["--port"]),
    (["evaluate", "--images", "x.npz", "--tracking-uri", "none"], ["--tracking-uri", "--images"]),
    (["ui"], ["no mlflow.db yet", "cmray sweep"]),
    (["sweeep", "x.yaml"], ["sweeep", "sweep"]),
    (["sweep"], ["FILE"]),
    (["--versoin"], ["--versoin", "--help"]),
]


@pytest.mark.parametrize(("arguments", "words"), COMMANDS, ids=[" ".join(a) for a, _ in COMMANDS])
def test_a_command_on_models(models, desk, arguments, words):
    (desk / "something").write_text("")
    names = {STUDENT: models.student, TEACHER: models.teacher}
    arguments = [names.get(a, a) for a in arguments]
    if arguments[0] in ("evaluate", "search", "sample", "report", "ui"):
        arguments += ["--storage", str(models.storage)]
    before, trained = snapshot(desk), snapshot(models.storage)
    refused(here(*arguments), *words)
    assert snapshot(desk) == before
    assert snapshot(models.storage) == trained, "something was written to the storage folder"


@pytest.mark.parametrize("command", ["evaluate", "search"])
def test_an_address_that_nobody_answers_for_a_model(models, desk, command):
    trained, began = snapshot(models.storage), time.monotonic()
    address = f"127.0.0.1:{closed_port()}"
    refused(here(command, models.student, "--storage", models.storage, "--address", address), address, "refused")
    assert time.monotonic() - began < 10
    assert snapshot(models.storage) == trained


def test_a_second_preparation_into_the_same_folder(desk):
    good(here("data", "prepare", "digits", "--out", desk / "digits"))
    before = snapshot(desk)
    refused(here("data", "prepare", "digits", "--out", desk / "digits"), "exists and is not empty", "another folder")
    assert snapshot(desk) == before


def test_a_port_in_use(desk):
    (desk / "mlflow.db").write_text("")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        refused(here("ui", "--port", port, "--storage", desk), f"port {port}", "in use", "--port")


def test_a_trial_without_a_checkpoint(desk):
    folder = desk / "storage" / "study" / "ct-0123456789"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("{}")
    ran = here("sample", "study/ct-0123456789", "--out", "x.png", "--storage", desk / "storage")
    refused(ran, "study/ct-0123456789", "no whole checkpoint yet")
