"""Real processes: two ranks train as one, and a killed or stopped one goes on as if nothing had happened."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_run import checkpoint, go, small, teacher_checkpoint

from cmray.config.checkpoint_facts import read_checkpoint_facts
from cmray.config.run import RunConfig
from cmray.engine.session import plain_session
from cmray.tracking.events import read_events

WORKER = Path(__file__).with_name("train_worker.py")
ENV = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}


def job(run: RunConfig, folder: Path, teacher: Path | None = None, **more) -> dict:
    return {"run": run.model_dump(mode="json"), "folder": str(folder), "teacher": str(teacher or "") or None, **more}


def start(jobs: list[dict], out: Path, *launcher: str) -> subprocess.Popen:
    out.mkdir(parents=True, exist_ok=True)
    (out / "jobs.json").write_text(json.dumps(jobs))
    command = [sys.executable, *launcher, str(WORKER), str(out / "jobs.json"), str(out)]
    return subprocess.Popen(command, env=ENV, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process: subprocess.Popen) -> None:
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output


def wait_for(process: subprocess.Popen, path: Path) -> None:
    """Until the running process has made `path`."""
    deadline = time.monotonic() + 60
    while not path.exists():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, f"{path} was never made"
        time.sleep(0.002)


def curve_of(folder: Path) -> list:
    return [(e.step, e.nimg, e.metrics) for e in read_events(folder / "events.jsonl") if e.kind == "curve"]


def files(folder: Path) -> dict[str, str]:
    facts = read_checkpoint_facts(checkpoint(folder))
    return {"step": str(facts.step), **facts.files}


# ---------------------------------------------------------------- two ranks under torchrun

CHANGES_ANY = {"train.batch_size": 16, "train.steps": 6, "train.log_every": 1}
CHANGES = {**CHANGES_ANY, "objective.num_sigmas": 9}
LEARNED = {"name": "ct", "num_sigmas": 3, "times": {"name": "loss-second-moment", "history": 2}}
#: of which two processes take one and two shares
THREE = {"train.batch_size": 12, "resources.workers": 3, "resources.min_workers": 1}
CONTINUOUS = {"name": "cd-continuous", "theta_minus": "student"}


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory) -> Path:
    """One torchrun of two processes that trains everything the tests below compare."""
    out = tmp_path_factory.mktemp("two")
    teacher = teacher_checkpoint(out / "teacher", {"train.steps": 2})
    (out / "teacher.txt").write_text(str(teacher))
    two = {**CHANGES, "resources.workers": 2}
    any_two = {**CHANGES_ANY, "resources.workers": 2}
    cd = {"objective": {"name": "cd", "num_sigmas": 9}, "teacher": {"checkpoint": str(teacher)}}
    continuous = cd | {"objective": CONTINUOUS}
    learned = {"objective": LEARNED}
    finish(
        start(
            [
                {"what": "gradients"},
                {"what": "cost"},
                {"what": "agree"},
                job(small(two), out / "ct"),
                job(small({**two, "train.accumulate": 2}), out / "ct accumulate"),
                job(small({**cd, **two, "net.class_conditional": False}), out / "cd", teacher),
                job(small({**learned, **any_two}), out / "learned"),
                job(small({**continuous, **any_two}), out / "cd continuous", teacher),
                job(small({**CHANGES, **THREE}), out / "two of three"),
                job(small({"objective": LEARNED, **CHANGES_ANY, **THREE}), out / "learned, two of three"),
                job(small(two), out, what="params", name="ct"),
                job(small(two, curve={"every": 2, "num_samples": 8}), out / "parts", stop={"rank": 1, "calls": 3}),
                job(small(two, curve={"every": 2, "num_samples": 8}), out / "parts"),
            ],
            out,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node",
            "2",
        )
    )
    return out


def test_two_ranks_equal_one_process_that_takes_the_batch_in_two_parts_bit_for_bit(two_ranks, tmp_path):
    """The sum of two gradients is the same in either order, so not even the last bit differs."""
    go(small({**CHANGES, "train.accumulate": 2}), tmp_path)
    assert files(tmp_path) == files(two_ranks / "ct")
    one, two = ([e.metrics for e in read_events(f / "events.jsonl")] for f in (tmp_path, two_ranks / "ct"))
    for a, b in zip(one, two, strict=True):
        for key in ("loss", "grad_norm", "lr", "num_sigmas", "mu"):
            assert a[key] == pytest.approx(b[key], rel=1e-12), key


def test_two_ranks_distil_as_one_process(two_ranks, tmp_path):
    teacher = Path((two_ranks / "teacher.txt").read_text())
    cd = {"objective": {"name": "cd", "num_sigmas": 9}, "teacher": {"checkpoint": str(teacher)}}
    go(small({**cd, **CHANGES, "train.accumulate": 2}), tmp_path, teacher)
    assert files(tmp_path) == files(two_ranks / "cd")


def test_a_forward_derivative_of_the_student_is_exchanged_too(two_ranks, tmp_path):
    """theta_minus = student trains through the jvp alone: a wrapper around the network would miss it silently."""
    teacher = Path((two_ranks / "teacher.txt").read_text())
    run = small(
        {"objective": CONTINUOUS, "teacher": {"checkpoint": str(teacher)}, **CHANGES_ANY, "train.accumulate": 2}
    )
    go(run, tmp_path, teacher)
    assert files(tmp_path) == files(two_ranks / "cd continuous")
    start = load_file(teacher / "ema-0.999.safetensors")
    end = load_file(checkpoint(tmp_path) / "student.safetensors")
    weights = [name for name in start if "weight" in name]
    assert weights
    assert not any(torch.equal(start[name], end[name]) for name in weights)


def test_draws_are_learned_from_the_losses_of_all_ranks(two_ranks, tmp_path):
    go(small({"objective": LEARNED, **CHANGES_ANY, "train.accumulate": 2}), tmp_path)
    assert files(tmp_path) == files(two_ranks / "learned")
    learned = load_file(checkpoint(tmp_path) / "objective.safetensors")
    assert int(learned["counts"].sum()) == 6 * 16


def test_two_ranks_of_two_parts_equal_four_parts_up_to_the_order_of_the_sum(two_ranks, tmp_path):
    """(a + b) + (c + d) is not ((a + b) + c) + d: float32 rounding, at most 1e-6 of a parameter after six steps."""
    go(small({**CHANGES, "train.accumulate": 4}), tmp_path)
    one, two = (load_file(checkpoint(f) / "student.safetensors") for f in (tmp_path, two_ranks / "ct accumulate"))
    assert max(float((one[name] - two[name]).abs().max()) for name in one) <= 1e-6
    assert read_checkpoint_facts(checkpoint(two_ranks / "ct accumulate")).nimg == 96


@pytest.mark.parametrize("what", ["ct", "learned"])
def test_two_ranks_in_the_place_of_three_learn_what_one_process_learns(two_ranks, tmp_path, what):
    """One rank has two of the three shares. Only the order of the sum differs, so losses agree to rounding."""
    changes = {**CHANGES, **THREE} if what == "ct" else {"objective": LEARNED, **CHANGES_ANY, **THREE}
    go(small(changes), tmp_path)
    there = two_ranks / ("two of three" if what == "ct" else "learned, two of three")
    one, two = ([e for e in read_events(f / "events.jsonl") if e.kind == "train"] for f in (tmp_path, there))
    assert [e.metrics["loss"] for e in one] == pytest.approx([e.metrics["loss"] for e in two], rel=1e-6)
    assert len(one) == 6
    ours, theirs = (load_file(checkpoint(f) / "student.safetensors") for f in (tmp_path, there))
    assert max(float((ours[name] - theirs[name]).abs().max()) for name in ours) <= 1e-6
    if what == "learned":
        counts = [load_file(checkpoint(f) / "objective.safetensors")["counts"] for f in (tmp_path, there)]
        assert torch.equal(*counts), "the losses of all ranks, in the order of the parts"


def test_the_cost_of_all_ranks_is_added_up(two_ranks):
    zero, one = (json.loads((two_ranks / f"cost-rank-{r}.json").read_text()) for r in (0, 1))
    assert zero["cpu_seconds"] == one["cpu_seconds"] >= 0.15
    assert zero["energy_joules"] is one["energy_joules"] is None
    result = json.loads((two_ranks / "ct" / "result.json").read_text())
    assert result["cpu_seconds"] > 0
    assert (result["gpu_seconds"], result["energy_joules"]) == (0, None)


def test_both_ranks_hold_the_same_bits(two_ranks):
    zero, one = (torch.load(two_ranks / f"ct-rank-{r}.pt", weights_only=True) for r in (0, 1))
    assert set(zero) == {"student", "target", 0.999}
    for name in zero:
        assert torch.equal(zero[name], one[name]), name
    saved = load_file(checkpoint(two_ranks / "ct") / "student.safetensors")
    assert sum(v.numel() for v in saved.values()) == zero["student"].numel()


def test_the_exchanged_gradient_is_the_sum_of_the_local_ones_jvp_included(two_ranks):
    zero, one = (torch.load(two_ranks / f"gradients-rank-{r}.pt", weights_only=True) for r in (0, 1))
    kinds = [key.removesuffix(" summed") for key in zero if key.endswith("summed")]
    assert len(kinds) == 9
    for kind in kinds:
        local = [found[f"{kind} local"] for found in (zero, one)]
        assert not torch.equal(*local)
        for found in (zero, one):
            assert torch.equal(found[f"{kind} summed"], local[0] + local[1]), kind


def test_a_stop_asked_of_one_rank_stops_both_and_they_go_on_to_the_same_weights(two_ranks):
    outcomes = [json.loads((two_ranks / f"rank-{r}.json").read_text()) for r in (0, 1)]
    assert outcomes[0] == outcomes[1]
    assert outcomes[0][-2:] == [["stopped", 3], ["finished", 6]]
    assert files(two_ranks / "parts") == files(two_ranks / "ct")
    events = read_events(two_ranks / "parts" / "events.jsonl")
    assert [e.step for e in events if e.kind == "train"] == [1, 2, 3, 4, 5, 6]
    assert [e.step for e in events if e.kind == "curve"] == [2, 4, 6]
    result = json.loads((two_ranks / "parts" / "result.json").read_text())
    assert result["world_size"] == 2


def test_ranks_ask_each_other_to_stop_after_every_slow_step_and_now_and_then_after_fast_ones(two_ranks):
    """All ranks after the same steps, however slow each is; the last is the one at which both stop."""
    zero, one = (json.loads((two_ranks / f"agree-rank-{r}.json").read_text()) for r in (0, 1))
    assert zero == one
    assert zero["fast"] == [1, 21, 41, 61], "at the latest after AGREE_EVERY steps"
    assert zero["slow"] == [1, 2, 3, 4, 5]
    gaps = [b - a for a, b in itertools.pairwise(zero["between"])]
    assert max(gaps) <= 10, "ten steps of 0.05 s take the half second that was allowed"
    assert max(gaps) > 1
    assert 20 <= zero["between"][-1] <= 30


def test_rank_0_alone_measures_the_curve_and_in_a_thread(two_ranks):
    zero, one = (json.loads((two_ranks / f"threads-rank-{r}.json").read_text()) for r in (0, 1))
    assert any(name.startswith("cmray-curve") for name in zero)
    assert "MainThread" in one
    assert not any(name.startswith("cmray-curve") for name in one)


# ---------------------------------------------------------------- killed and stopped processes

LONG = {"train.steps": 400, "train.checkpoint_every": 40, "train.log_every": 7, "train.keep_checkpoints": 2}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    go(small(LONG, curve={"every": 100, "num_samples": 8}), folder)
    return folder


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM], ids=lambda s: s.name)
def test_a_process_ended_in_the_middle_is_resumed_to_the_same_files(uninterrupted, tmp_path, how):
    run = small(LONG, curve={"every": 100, "num_samples": 8})
    folder = tmp_path / "trial"
    process = start([job(run, folder)], tmp_path / "out")
    try:
        wait_for(process, folder / "checkpoints" / "step-00000080")
        process.send_signal(how)
        output, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert not (folder / "result.json").exists(), "it was over before it was ended: make it longer"
    if how == signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
    else:
        assert process.returncode == 0, output
        ((status, step),) = json.loads((tmp_path / "out" / "rank-0.json").read_text())
        assert status == "stopped"
        assert read_checkpoint_facts(checkpoint(folder)).step == step, "it saved where it stopped"
        assert 80 <= step < 400
    outcome = go(run, folder, warn=pytest.fail)
    assert (outcome.status, outcome.step) == ("finished", 400)
    assert files(folder) == files(uninterrupted)
    assert outcome.result.weights_sha256 == json.loads((uninterrupted / "result.json").read_text())["weights_sha256"]
    for kind in ("train", "curve"):
        steps = [[e.step for e in read_events(f / "events.jsonl") if e.kind == kind] for f in (folder, uninterrupted)]
        assert steps[0] == steps[1], "each step stands once"
    assert curve_of(folder) == curve_of(uninterrupted)
    assert not list(folder.rglob(".step-*")), "nothing half-written stays"


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM], ids=lambda s: s.name)
def test_a_signal_asks_to_stop_while_training_only(how):
    before = signal.getsignal(how)
    with plain_session(torch.device("cpu")) as session:
        assert signal.getsignal(how) is before, "only training listens"
        with session.listening():
            assert not session.should_stop()
            os.kill(os.getpid(), how)
            assert session.should_stop()
        assert signal.getsignal(how) is before
    assert signal.getsignal(how) is before, "the caller's handler is back"


@pytest.mark.slow
def test_a_process_that_is_killed_again_and_again_while_it_measures_draws_the_same_curve(tmp_path):
    """Points that take a hundred steps, at the checkpoints and between them; killed where a point is begun."""
    changes = {"train.steps": 900, "train.checkpoint_every": 150, "train.log_every": 50}
    run = small(changes, curve={"every": 100, "num_samples": 1500, "nfe": [1, 2]})
    go(run, tmp_path / "whole")
    folder, lost = tmp_path / "parts", 0
    for step in (150, 300, 600):
        process = start([job(run, folder)], tmp_path / "out")
        try:
            wait_for(process, folder / "checkpoints" / f"step-{step:08d}")
            process.send_signal(signal.SIGKILL)
            process.communicate(timeout=60)
        finally:
            process.kill()
        assert process.returncode == -signal.SIGKILL
        saved = read_checkpoint_facts(checkpoint(folder)).step
        there = [point[0] for point in curve_of(folder)]
        assert there[: saved // 100 - (saved % 100 == 0)] == list(range(100, saved, 100)), "none before a checkpoint"
        lost += saved % 100 == 0 and saved not in there
    assert lost, "no point was being measured when its process was killed: make them longer"
    assert go(run, folder, warn=pytest.fail).status == "finished"
    assert files(folder) == files(tmp_path / "whole")
    for one, other in zip(curve_of(folder), curve_of(tmp_path / "whole"), strict=True):
        assert one[:2] == other[:2]
        assert one[2] == pytest.approx(other[2], rel=1e-12), "numpy's threads, more here than there, round differently"
