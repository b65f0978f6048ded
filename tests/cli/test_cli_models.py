"""Training in a plain process and what is done with its models: exact, idempotent, told to machines."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from cli_run import CD, CT, EDM, Running, good, here, write
from own_names import own
from PIL import Image

from cmray.config.checkpoint_facts import read_checkpoint_facts
from cmray.tracking.events import read_events

UNTRACKED = ("--tracking-uri", "none")


def folder_of(storage: Path, pattern: str) -> Path:
    (folder,) = storage.glob(pattern)
    return folder


def steps(folder: Path) -> list[int]:
    return [e.step for e in read_events(folder / "events.jsonl") if e.kind == "train"]


# ---------------------------------------------------------------- train


@pytest.fixture
def student(tmp_path) -> Path:
    write(tmp_path / "teacher.yaml", EDM)
    return write(tmp_path / "student.yaml", CD, teacher={"experiment": "teacher.yaml"})


def test_a_teacher_is_trained_first_and_nothing_twice(tmp_path, student):
    storage = tmp_path / "storage"
    ran = good(here("train", student, "--storage", storage, *UNTRACKED))
    assert ran.err.index("Training teacher") < ran.err.index("Training the run")
    assert "trained: 40 steps" in ran.out
    assert "next: cmray sample student/cd-" in ran.out
    trial = folder_of(storage, "student/cd-*")
    teacher = folder_of(storage, "teacher/edm-*")
    assert steps(trial) == steps(teacher) == list(range(1, 41))
    files = [trial / "result.json", trial / "events.jsonl", teacher / "result.json"]
    before = [f.read_bytes() for f in files]
    ran = good(here("train", student, "--storage", storage, *UNTRACKED))
    assert "was trained already" in ran.out
    assert "Training" not in ran.err
    assert [f.read_bytes() for f in files] == before


def test_never_resuming_trains_again_to_the_same_weights(tmp_path, student):
    storage = tmp_path / "storage"
    first = good(here("train", student, "--storage", storage, *UNTRACKED, "--json")).json
    made = (folder_of(storage, "student/cd-*") / "result.json").stat().st_mtime_ns
    ran = good(here("train", student, "--storage", storage, *UNTRACKED, "--json", "--resume", "never"))
    second = ran.json
    assert "Training teacher" not in ran.err
    assert (folder_of(storage, "student/cd-*") / "result.json").stat().st_mtime_ns != made
    assert second["trial"] == first["trial"]
    assert second["status"] == "finished"
    assert second["result"]["weights_sha256"] == first["result"]["weights_sha256"]
    assert steps(folder_of(storage, "student/cd-*")) == list(range(1, 41))


def test_never_resuming_leaves_alone_what_another_process_trains(tmp_path):
    from cmray.core.locks import locked

    storage, file = tmp_path / "storage", write(tmp_path / "run.yaml", CT)
    good(here("train", file, "--storage", storage, *UNTRACKED))
    with locked([storage / "run"]):
        ran = here("train", file, "--storage", storage, *UNTRACKED, "--resume", "never")
    assert ran.code == 2
    assert f"process {os.getpid()}" in ran.err
    assert (folder_of(storage, "run/ct-*") / "result.json").is_file()


def test_a_run_that_diverges_says_so_and_exits_with_1(tmp_path):
    file = write(tmp_path / "run.yaml", CT, train={"optimizer": {"lr": 1e12}})
    ran = here("train", file, "--storage", tmp_path / "storage", *UNTRACKED)
    assert ran.code == 1
    assert "Traceback" not in ran.err
    told = " ".join(ran.err.split())
    assert "failed: the loss is" in told
    assert "train.optimizer.lr" in told
    error = folder_of(tmp_path / "storage", "run/ct-*") / "error.txt"
    assert error.read_text().startswith("the loss is")
    ran = here("train", file, "--storage", tmp_path / "storage", *UNTRACKED, "--json")
    assert ran.code == 1
    assert ran.json["status"] == "failed"
    good(here("train", file, "--set", "train.optimizer.lr=0.001", "--storage", tmp_path / "storage", *UNTRACKED))


def test_set_is_part_of_what_a_trial_is(tmp_path):
    storage, file = tmp_path / "storage", write(tmp_path / "run.yaml", CT)
    first = good(here("train", file, "--storage", storage, *UNTRACKED, "--json")).json
    other = good(here("train", file, "--storage", storage, *UNTRACKED, "--json", "--set", "seed=1")).json
    assert first["trial"] != other["trial"]
    assert first["result"]["weights_sha256"] != other["result"]["weights_sha256"]


LONG = {"train": {"steps": 1200, "batch_size": 256, "checkpoint_every": 1200, "log_every": 1}, "curve": None}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("undisturbed")
    return good(here("train", write(folder / "run.yaml", CT, LONG), "--storage", folder, *UNTRACKED, "--json")).json


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_a_plain_training_starts_no_ray_and_stops_with_a_checkpoint(tmp_path, undisturbed, stop):
    """The step that runs when the signal comes is saved; the same command goes on from there to the same weights."""
    file = write(tmp_path / "run.yaml", CT, LONG)
    storage = tmp_path / "storage"
    with Running(tmp_path / "desk", "train", file, "--storage", storage, *UNTRACKED) as running:
        running.until(lambda: any(steps(f.parent)[100:] for f in storage.glob("run/*/events.jsonl")), "100 steps")
        assert running.process.pid in [p.pid for p in running.left()]
        assert [p for p in running.left() if "ray" in p.name() or "raylet" in " ".join(p.cmdline())] == []
        running.ctrl_c() if stop == signal.SIGINT else running.process.send_signal(stop)
        ran = running.ended(20)
        running.gone(1)
    assert ran.code == 130
    assert ran.err.strip().endswith("stopped; the same command goes on where this one was")
    assert "Traceback" not in ran.err
    trial = folder_of(storage, "run/ct-*")
    (saved,) = (trial / "checkpoints").iterdir()
    assert 100 <= read_checkpoint_facts(saved).step == steps(trial)[-1] < 1200
    assert not (trial / "error.txt").exists()
    again = good(here("train", file, "--storage", storage, *UNTRACKED, "--json")).json
    assert steps(trial) == list(range(1, 1201))
    assert again["result"]["weights_sha256"] == undisturbed["result"]["weights_sha256"]


# ---------------------------------------------------------------- sample


def test_an_image_depends_on_its_seed_only(models, tmp_path):
    def pixels(name: str, *more: object) -> np.ndarray:
        out = tmp_path / f"{name}.npz"
        good(here("sample", models.student, "--storage", models.storage, "--out", out, *more))
        with np.load(out) as arrays:
            return arrays["arr_0"]

    many = pixels("many", "--num", 20, "--seed", 5)
    few = pixels("few", "--num", 3, "--seed", 9)
    assert many.shape == (20, 8, 8, 1)
    assert many.dtype == np.uint8
    np.testing.assert_array_equal(many[4:7], few)
    assert (many[0] != many[1]).any()
    two = pixels("two", "--num", 3, "--seed", 9, "--times", "80,1")
    assert (two != few).any()
    np.testing.assert_array_equal(two, pixels("again", "--num", 3, "--seed", 9, "--times", "80,1", "--nfe", 2))
    assert (pixels("student", "--num", 3, "--seed", 9, "--weights", "student") != few).any()


def test_a_folder_holds_the_same_pixels_as_the_arrays(models, tmp_path):
    for out in (tmp_path / "x.npz", tmp_path / "folder"):
        good(here("sample", models.student, "--storage", models.storage, "--out", out, "--num", 3, "--seed", 7))
    arrays = np.load(tmp_path / "x.npz")["arr_0"]
    names = ["000007.png", "000008.png", "000009.png", "index.csv", "sampler.json"]
    assert sorted(p.name for p in (tmp_path / "folder").iterdir()) == names
    for i in range(3):
        image = np.asarray(Image.open(tmp_path / "folder" / f"{7 + i:06d}.png"))
        np.testing.assert_array_equal(image, arrays[i, :, :, 0])


def test_a_grid_is_a_picture_and_machines_are_told(models, tmp_path):
    out = tmp_path / "grid.PNG"
    told = good(
        here("sample", models.teacher, "--storage", models.storage, "--out", out, "--nfe", 3, "--num", 9, "--json")
    ).json
    where = {"out": str(out), "num": 9, "seed": 0, "weights": "ema 0.9"}
    assert told == {**where, "sampler": "edm-heun", "nfe": 3, "times": told["times"]}
    assert told["times"][0] == 80
    assert told["times"] == sorted(told["times"], reverse=True)
    assert min(Image.open(out).size) >= 3 * 40


@pytest.mark.parametrize("form", ["trial", "beginning", "folder", "checkpoint"])
def test_every_way_to_name_a_model(models, tmp_path, form):
    trial = models.storage / models.student
    (checkpoint,) = (trial / "checkpoints").iterdir()
    name = {"trial": trial.name, "beginning": trial.name[:6], "folder": trial, "checkpoint": checkpoint}[form]
    good(here("sample", name, "--storage", models.storage, "--out", tmp_path / "x.npz", "--num", 2))
    good(here("sample", models.student, "--storage", models.storage, "--out", tmp_path / "y.npz", "--num", 2))
    np.testing.assert_array_equal(np.load(tmp_path / "x.npz")["arr_0"], np.load(tmp_path / "y.npz")["arr_0"])


# ---------------------------------------------------------------- evaluate, search, report


@pytest.fixture
def copied(models, tmp_path) -> Path:
    """A storage folder of its own, for what leaves records."""
    return Path(shutil.copytree(models.storage, tmp_path / "storage"))


def test_a_number_is_measured_once_and_carries_what_it_depends_on(models, copied):
    arguments = ("evaluate", models.student, "--storage", copied, "--num-samples", 512, "--nfe", "1,2")
    first = good(here(*arguments, "--json")).json
    records = sorted((copied / models.student / "evaluations").glob("*.json"))
    assert len(records) == 2
    changed = [r.stat().st_mtime_ns for r in records]
    assert good(here(*arguments, "--json")).json == first
    assert [r.stat().st_mtime_ns for r in records] == changed, "measured again"
    for record in records:
        record.unlink()
    assert good(here(*arguments, "--json")).json == first, "the same measurement gives another number"
    one, two = first
    assert (one["nfe"], two["nfe"]) == (1, 2)
    assert one["value"] != two["value"]
    assert one["metric"] == "fd/digits"
    assert one["n"] == 512
    assert one["reference_n"] == 1797
    result = json.loads((copied / models.student / "result.json").read_text())
    assert one["weights_sha256"] == result["weights_sha256"]
    shown = good(here(*arguments)).out
    assert f"{one['value']:.3f}" in shown
    assert "not FID" in shown


def test_the_record_is_what_is_read(models, copied):
    """A second call must not work again: a number changed on disk is the number told."""
    arguments = ("evaluate", models.student, "--storage", copied, "--num-samples", 64, "--nfe", "1", "--json")
    good(here(*arguments))
    (record,) = (copied / models.student / "evaluations").glob("*.json")
    values = json.loads(record.read_text())
    record.write_text(json.dumps({**values, "value": 123.0}))
    assert good(here(*arguments)).json[0]["value"] == 123.0


def test_a_teacher_is_measured_with_heun(models, copied):
    told = good(
        here("evaluate", models.teacher, "--storage", copied, "--num-samples", 64, "--nfe", "1,5", "--json")
    ).json
    assert [(t["sampler"], t["nfe"]) for t in told] == [("one-step", 1), ("edm-heun", 5)]


def test_samplers_and_their_options_have_records_of_their_own(models, copied):
    arguments = ("evaluate", models.teacher, "--storage", copied, "--num-samples", 64, "--nfe", 5, "--json")
    asked = {
        None: "edm-heun",
        "edm-heun": "edm-heun",
        "dpmpp-2m": "dpmpp-2m",
        "{name: edm-heun, S_churn: 40}": "edm-heun S_churn=40.0",
        "{name: edm-heun, S_churn: 40, S_noise: 1.01}": "edm-heun S_churn=40.0 S_noise=1.01",
    }
    values = {}
    for text, title in asked.items():
        (told,) = good(here(*arguments, *(["--sampler", text] if text else []))).json
        assert (told["sampler"], told["nfe"]) == (title, 5)
        values[text] = told["value"]
    assert values[None] == values["edm-heun"]
    assert len(set(values.values())) == 4
    assert len(list((copied / models.teacher / "evaluations").glob("*.json"))) == 4
    shown = good(here(*arguments[:-1], "--sampler", "dpmpp-2m")).out
    assert "dpmpp-2m" in shown


SAMPLING = [
    (["--sampler", "edm-huen", "--nfe", 3], ["edm-huen", "did you mean 'edm-heun'"]),
    (["--sampler", "edm-heun", "--nfe", 2], ["cannot take nfe 2", "nearest: 1 or 3"]),
    (["--sampler", "multistep", "--nfe", 2], ["multistep is for consistency models"]),
    (["--sampler", "euler"], ["--sampler euler needs --nfe"]),
    (["--sampler", "{name: edm-heun, S_churn", "--nfe", 3], ["--sampler {name: edm-heun", "write a name"]),
    (["--sampler", "[euler]", "--nfe", 3], ["--sampler [euler]", "write a name"]),
    (["--sampler", "{name: edm-heun, churn: 1}", "--nfe", 3], ["edm-heun", "churn", "did you mean 'S_churn'"]),
]


@pytest.mark.parametrize("command", ["sample", "evaluate"])
@pytest.mark.parametrize(("more", "words"), SAMPLING, ids=[w[0] for _, w in SAMPLING])
def test_a_sampler_that_cannot_be_is_one_line(models, copied, tmp_path, command, more, words):
    out = ["--out", tmp_path / "x.npz"] if command == "sample" else []
    ran = here(command, models.teacher, "--storage", copied, *out, *more)
    assert ran.code == 2
    (line,) = ran.err.strip().splitlines()
    for word in words:
        assert word in line
    assert not (tmp_path / "x.npz").exists()
    assert not list((copied / models.teacher).glob("evaluations/*.json"))


def test_images_by_a_named_sampler(models, tmp_path):
    def pixels(*more: object) -> np.ndarray:
        out = tmp_path / "x.npz"
        good(here("sample", models.teacher, "--storage", models.storage, "--out", out, "--num", 3, "--nfe", 9, *more))
        with np.load(out) as arrays:
            return arrays["arr_0"]

    usual = pixels()
    np.testing.assert_array_equal(pixels("--sampler", "edm-heun"), usual)
    assert (pixels("--sampler", "euler") != usual).any()
    assert (pixels("--sampler", "{name: edm-heun, S_churn: 40}") != usual).any()
    student = good(
        here("sample", models.student, "--storage", models.storage, "--out", tmp_path / "y.npz", "--num", 2,
             "--sampler", "multistep", "--times", "80,1", "--json")
    ).json  # fmt: skip
    assert (student["sampler"], student["times"]) == ("multistep", [80.0, 1.0])


def test_help_lists_the_samplers_there_are_without_importing_them():
    from cmray.cli.options import SAMPLERS
    from cmray.samplers import samplers

    assert own(samplers) == SAMPLERS, "a sampler's file has its name; what several share lies in base.py"
    code = (
        "import sys, cmray.cli.main as m\n"
        "try: m.main(['sample', '--help'])\n"
        "except SystemExit: pass\n"
        "print('torch' in sys.modules, file=sys.stderr)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stderr.strip() == "False"
    words = set(ran.stdout.replace(",", " ").replace(".", " ").split())
    assert {"ancestral", "ddim", "euler", "multistep"} <= words


def test_a_search_reports_on_seeds_it_did_not_see(models, copied):
    arguments = ("search", models.student, "--storage", copied, "--num-samples", 128, "--nfe", "2", "--json")
    (found,) = good(here(*arguments)).json
    assert found["times"][0] == 80
    assert 0.002 < found["times"][1] < 80
    assert found["value"] == min(p["value"] for p in found["points"])
    (search,) = (copied / models.student / "searches").glob("*.json")
    (evaluation,) = (copied / models.student / "evaluations").glob("*.json")
    reported = json.loads(evaluation.read_text())["provenance"]
    assert reported["searched"] is True
    assert reported["times"] == found["times"]
    searching = found["provenance"]
    assert searching["weights_sha256"] == reported["weights_sha256"]
    seeds = [range(p["seed_first"], p["seed_first"] + p["n"]) for p in (searching, reported)]
    assert not set(seeds[0]) & set(seeds[1])
    changed = search.stat().st_mtime_ns
    assert good(here(*arguments)).json == [found]
    assert search.stat().st_mtime_ns == changed
    shown = good(here(*arguments[:-1]))
    assert f"next: cmray sample {models.student} --times" in shown.out


def test_a_report_of_what_is_there(models, copied, tmp_path):
    good(here("evaluate", models.student, "--storage", copied, "--num-samples", 64, "--nfe", "1"))
    told = good(here("report", "student", "--storage", copied, "--out", tmp_path / "out", "--json")).json
    assert {"table.csv", "table.md", "curve.png"} <= told["files"].keys()
    for path in told["files"].values():
        assert Path(path).is_file()
        assert Path(path).is_relative_to(tmp_path / "out")
    table = (tmp_path / "out" / "table.csv").read_text()
    assert "cd" in table
    assert "edm" in table
    shown = good(here("report", "student", "--storage", copied)).out
    assert "table.md" in shown
