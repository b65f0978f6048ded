"""Whatever is killed at any moment: nothing of it stays, the sweep goes on, and the results are the same."""

from __future__ import annotations

import signal
import subprocess
import time
from contextlib import ExitStack

import pytest
from cli_run import CT, Running, write
from survival import (
    DDP,
    EVALUATOR,
    EVERY,
    LONG,
    STEPS,
    TEACHER,
    TUNE,
    Blow,
    equal,
    finishes,
    kill_busiest,
    last_saved,
    made,
    note,
    reached,
    searching,
    sweeping,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def test_workers_trials_and_evaluators_that_are_killed_are_started_again(tmp_path, undisturbed):
    with sweeping(tmp_path) as running:
        blows = []
        for experiment, name in ((TEACHER, DDP), ("study", TUNE)):
            running.until(reached(tmp_path, experiment, 350), f"step 350 of {experiment}")
            blows.append(Blow(f"SIGKILL to {name}", tmp_path, experiment))
            kill_busiest(running, name)
        running.until(searching(running, tmp_path), "the search")
        kill_busiest(running, EVALUATOR)
        note("SIGKILL to an evaluator in mid-search")
        ran = running.ended()
        running.gone(20)
    assert ran.code == 0, ran.err
    assert "failed" not in ran.err
    for blow in blows:
        blow.taken()
    equal(made(tmp_path), undisturbed)
    (line,) = [line for line in ran.err.splitlines() if "its process died" in line]
    assert "it is started again, see errors/" in line


def test_a_driver_that_is_interrupted_and_killed_leaves_nothing_and_goes_on(tmp_path, undisturbed):
    """Ctrl-C while two ranks train, SIGKILL while trials run under Tune, an impatient Ctrl-C in the search."""
    with ExitStack() as stack:
        first = stack.enter_context(sweeping(tmp_path))
        first.until(reached(tmp_path, TEACHER, 350), "step 350 of the teacher")
        assert len(first.left()) > 5, "where is Ray?"
        interrupt = Blow("Ctrl-C in DDP", tmp_path, TEACHER)
        first.ctrl_c()
        ran = first.ended(30)
        first.gone(30)
        assert ran.code == 130, ran.err
        assert ran.err.strip().endswith("stopped; the same command goes on where this one was")
        saved = last_saved(tmp_path, TEACHER)
        assert 300 <= saved < STEPS

        second = stack.enter_context(sweeping(tmp_path))
        second.until(reached(tmp_path, "study", 350), "step 350 of the study")
        assert f"resumes at {saved:,}" in second.text(), "it did not go on from where it was"
        interrupt.taken()
        kill = Blow("SIGKILL to the driver", tmp_path, "study")
        second.process.kill()
        assert second.ended(30).code == -signal.SIGKILL
        # two small agents of a Ray whose driver is killed try for 60 s, fixed in Ray, to tell it so before they leave
        last = time.monotonic() + 120

        third = stack.enter_context(sweeping(tmp_path))
        third.until(searching(third, tmp_path), "the search")
        kill.taken()
        third.ctrl_c()
        try:
            third.process.wait(0.3)
        except subprocess.TimeoutExpired:
            third.ctrl_c()
        ran = third.ended(30)
        third.gone(30)
        assert ran.code == 130, ran.err

        finishes(tmp_path, undisturbed)
        second.gone(max(1.0, last - time.monotonic()))
        for running in (first, second, third):
            assert "Traceback" not in running.text()


# ---------------------------------------------------------------- one rank alone meets an error


def broken_run(folder, storage):
    """A run of two workers whose rank 0 cannot write its first checkpoint: there is a file where its folder would be.

    Its step 100 is the first at which anything differs between the ranks.
    """
    folder.mkdir(parents=True)
    file = write(folder / "run.yaml", CT, LONG, resources={"workers": 2})
    from cmray.config.plan import plan_experiment

    (trial,) = plan_experiment(file, [], storage).trials
    trial.folder.mkdir(parents=True)
    (trial.folder / "checkpoints").write_text("in the way")
    return file, trial.folder


def says_why(trial, within: float) -> None:
    reason, *_ = (trial / "error.txt").read_text().splitlines()
    assert reason.startswith(f"the checkpoint of step {EVERY} cannot be written to {trial / 'checkpoints'}: ")
    (kept,) = (trial / "errors").iterdir()
    assert "Traceback" in kept.read_text()
    assert time.time() - (trial / "events.jsonl").stat().st_mtime < within, "the other rank was waited for"
    assert not list(trial.glob(".failure*"))


def test_an_error_of_one_rank_ends_a_run_under_ray_with_its_reason(tmp_path):
    storage = tmp_path / "storage"
    file, trial = broken_run(tmp_path / "file", storage)
    with Running(tmp_path / "desk", "train", file, "--storage", storage, "--tracking-uri", "none") as running:
        ran = running.ended(180)
        says_why(trial, 60)
        running.gone(20)
    assert ran.code == 1, ran.err
    assert "cannot be written" in ran.err
    assert "Traceback" not in ran.err


def test_an_error_of_one_rank_ends_a_run_under_torchrun_with_its_reason(tmp_path):
    import os
    import sys

    storage = tmp_path / "storage"
    file, trial = broken_run(tmp_path / "file", storage)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "cmray"]
    command = [*launcher, "train", str(file), "--storage", str(storage), "--tracking-uri", "none"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment, check=False)
    assert ran.returncode != 0
    says_why(trial, 60)
    assert "cannot be written" in ran.stderr
