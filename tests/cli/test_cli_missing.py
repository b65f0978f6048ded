"""What an experiment says where its images or weights are not: one line with the way out, and nothing written."""

import shutil
from pathlib import Path

import pytest
from cli_run import ROOT, Ran, good, here, snapshot

from cmray.cli.missing import hours


@pytest.fixture
def repository(tmp_path, monkeypatch) -> Path:
    """The shipped experiments where no data has been prepared and no weights are."""
    shutil.copytree(ROOT / "experiments", tmp_path / "experiments")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def refused(ran: Ran) -> str:
    lines = [line for line in ran.err.strip().splitlines() if not line.startswith(("cmray sweep ", "cmray train "))]
    assert (ran.code, ran.out, len(lines)) == (2, "", 1), ran.err
    assert lines[0].startswith("error: ")
    return lines[0].removeprefix("error: ")


def command_in(line: str) -> list[str]:
    """The last command that a line quotes."""
    return line.split("`")[-2].split()[1:]


def test_a_sweep_without_its_data_says_what_is_missing_what_it_costs_and_what_runs_now(repository):
    before = snapshot(repository)
    line = refused(here("sweep", "experiments/fig3.yaml", "--storage", "storage"))
    assert "needs cifar10 in data/cifar10, which is not there" in line
    assert "`cmray data prepare cifar10 --out data/cifar10`" in line
    assert "vgg16-397923af.pth" in line
    assert "at 30% of an A100's 312 TFLOP/s" in line
    hours = float(line.split(" GPU-hours")[0].rsplit(" ", 1)[1].replace(",", ""))
    assert 5_000 < hours < 50_000
    place = repository / "storage"
    assert line.endswith(
        f"`cmray sweep experiments/fig3.yaml --overlay experiments/overlays/digits.yaml --storage {place}`"
    )
    only = refused(here("sweep", "experiments/fig3.yaml", "--only", "a distance", "--storage", "storage"))
    less = float(only.split(" GPU-hours")[0].rsplit(" ", 1)[1].replace(",", ""))
    assert "these panels take" in only
    assert less < hours / 3
    plan = good(here(*command_in(line), "--dry-run", "--json")).json
    assert plan["experiment"] == "fig3-digits"
    assert len(plan["trials"]) == 20
    assert plan["gpu_hours"] is None, "here it is timed"
    assert snapshot(repository) == before


def test_data_that_nobody_downloads_is_asked_for_with_its_source(repository):
    line = refused(here("sweep", "experiments/table2-lsun-cat.yaml", "--storage", "storage"))
    assert "`cmray data prepare lsun --source YOUR_FILES --out data/lsun-cat256`" in line


def test_train_says_it_too(repository):
    line = refused(here("train", "experiments/presets/cifar10-cd.yaml", "--storage", "storage"))
    assert "needs cifar10 in data/cifar10" in line
    assert command_in(line)[:4] == [
        "train", "experiments/presets/cifar10-cd.yaml", "--overlay", "experiments/overlays/digits.yaml"
    ]  # fmt: skip


def test_train_of_a_file_with_panels_suggests_what_can_run(repository):
    line = refused(here("train", "experiments/fig3.yaml", "--storage", "storage"))
    assert command_in(line)[:2] == ["sweep", "experiments/fig3.yaml"]


@pytest.mark.parametrize(
    ("value", "shown"),
    [(14_412.0, "14,400"), (99.7, "100"), (12.34, "12"), (2.53, "2.5"), (0.0123, "0.012"), (1e-5, "less than 0.01")],
)
def test_hours_have_as_many_digits_as_anybody_knows(value, shown):
    assert hours(value) == shown


def test_another_mistake_comes_before_missing_data(repository):
    line = refused(here("sweep", "experiments/fig3.yaml", "--set", "objective.solver=huen", "--storage", "storage"))
    assert "did you mean 'heun'" in line
    assert "GPU-hours" not in line


def test_an_overlay_without_its_data_suggests_one_that_has(repository):
    overlay = "experiments/overlays/mnist.yaml"
    line = refused(here("sweep", "experiments/fig3.yaml", "--overlay", overlay, "--storage", "storage"))
    assert "`cmray data prepare mnist --out data/mnist`" in line
    assert "then `cmray features train data/mnist --out data/mnist-features.safetensors`" in line
    assert "GPU-hours" not in line, "it asks for none"
    assert "--overlay experiments/overlays/digits.yaml --storage " in line


def test_without_overlays_beside_it_the_line_ends_with_the_cost(repository):
    shutil.rmtree(repository / "experiments" / "overlays")
    assert refused(here("sweep", "experiments/fig3.yaml", "--storage", "storage")).endswith("in fp32 (TF32))")


def test_a_folder_that_could_hold_anything_is_named_and_no_more(repository):
    extra = ("--set", "data={path: data/own}", "--set", "data.dataset=null", "--storage", "storage")
    line = refused(here("sweep", "experiments/fig3.yaml", *extra))
    assert "data/own does not exist" in line
    assert "GPU-hours" not in line


def test_a_plan_for_gpus_that_are_not_here_shows_gpu_hours(repository):
    set_ = [f"--set={text}" for text in ("resources={workers: 1, gpus_per_worker: 999}", "curve=null")]
    file = ("experiments/quickstart.yaml", "--storage", str(repository / "storage"))
    assert "gpus_per_worker 999" in refused(here("sweep", *file, *set_))
    plan = good(here("sweep", *file, *set_, "--dry-run", "--json")).json
    students = [t for t in plan["trials"] if t["role"] == "trial"]
    assert students
    assert all(t["seconds"] is None and 0 < t["gpu_hours"] < 0.1 for t in students)
    assert sum(t["gpu_hours"] for t in plan["trials"]) < plan["gpu_hours"] < 0.1
    shown = good(here("sweep", *file, *set_, "--dry-run"))
    assert "GPU-hours at 30% of an A100's" in " ".join(shown.err.split())


@pytest.mark.parametrize("command", ["sweep", "train"])
def test_overlays_are_in_the_help(command):
    assert "--overlay" in good(here(command, "--help")).out
