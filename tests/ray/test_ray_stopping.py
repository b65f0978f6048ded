"""Sweeps that end trials early, or themselves: decisions stand, what was begun goes on, nothing leaks."""

from __future__ import annotations

import json
import re
import shlex
import signal
from pathlib import Path
from typing import Any

import pytest
from cli_run import CT, Ran, Running, here, write
from mlflow.tracking import MlflowClient

from cmray.cluster import connect, sweep
from cmray.cluster.resources import DATA_CPUS, Capacity
from cmray.config.checkpoint_facts import read_checkpoint_facts
from cmray.tracking.decisions import DECISIONS, read_decisions
from cmray.tracking.events import read_events

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

STEPS = 1500
RUN: dict[str, Any] = {
    "train": {"steps": STEPS, "batch_size": 128, "checkpoint_every": 500, "log_every": 10},
    "curve": {"every": 100, "num_samples": 64},
}


def trials(folder: Path) -> dict[str, Path]:
    """Folders by label."""
    plan = json.loads((folder / "storage" / "study" / "experiment.json").read_text())
    return {t["label"]: folder / "storage" / "study" / t["name"] for t in plan["trials"]}


def swept(folder: Path, file: Path, *more: object, tracking: str = "none") -> Running:
    place = ("--storage", folder / "storage", "--tracking-uri", tracking)
    return Running(folder / "desk", "sweep", file, *place, *more)


def to_its_end(folder: Path, file: Path, *more: object, tracking: str = "none") -> Ran:
    with swept(folder, file, *more, tracking=tracking) as running:
        ran = running.ended()
        running.gone(20)
    return ran


def decisions(folder: Path) -> dict[str, bytes]:
    return {p.parent.name: p.read_bytes() for p in folder.glob(f"storage/study/*/{DECISIONS}")}


def test_a_killed_sweep_keeps_its_decisions_and_a_stopped_trial_is_never_trained_again(tmp_path):
    """One trial learns, three do not: their learning rate is as good as none."""
    panels = {"rates": {"grid": {"train.optimizer.lr": [0.01, 1e-9, 2e-9, 3e-9]}}}
    stopping = {"name": "asha", "grace": 300, "reduction": 3}
    measured = {"num_samples": 256, "nfe": [1]}
    file = write(tmp_path / "study.yaml", CT, RUN, panels=panels, stopping=stopping, evaluate=measured)
    with swept(tmp_path, file) as running:
        running.until(lambda: decisions(tmp_path), "the first decision")
        running.look()
        running.process.send_signal(signal.SIGKILL)
        running.process.wait(10)  # test_survival_processes.py waits for what it leaves; here the block ends it
    before = decisions(tmp_path)
    uri = f"sqlite:///{tmp_path}/runs.db"
    ran = to_its_end(tmp_path, file, "--json", tracking=uri)
    assert ran.code == 0, ran.err
    after = decisions(tmp_path)
    for name, text in before.items():
        assert after[name].startswith(text), "a decision was taken back"
    told = {t["label"]: t for t in ran.json["trials"]}
    best, *rest = (told[label] for label in trials(tmp_path))
    assert best["status"] == "finished", "the one that learns was stopped"
    assert {t["status"] for t in rest} == {"stopped", "finished"} or {t["status"] for t in rest} == {"stopped"}
    assert ran.json["stopped"] >= 2
    for trial in rest:
        if trial["status"] != "stopped":
            continue
        folder = tmp_path / "storage" / trial["trial"]
        last = read_decisions(folder)[-1]
        assert (last.step, last.goes_on, last.rule["name"]) == (300, False, "asha") or last.step == 900
        assert last.value > last.limit
        assert trial["evaluations"] == []
        if folder.name not in before:
            assert f"{trial['label']} at step {last.step} by asha" in " ".join(ran.err.split()).replace(
                "was stopped ", ""
            )
        saved = [read_checkpoint_facts(c).step for c in folder.glob("checkpoints/step-*")]
        assert saved or folder.name in before, "what this sweep stopped had the time to save"
        assert all(step < STEPS for step in saved)
        assert read_events(folder / "events.jsonl")[-1].step < STEPS
        assert not (folder / "stop").exists()
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("study")
    runs = {r.data.tags.get("cmray.trial"): r.info.status for r in client.search_runs([experiment.experiment_id])}
    assert {runs[t["trial"]] for t in rest if t["status"] == "stopped"} == {"KILLED"}
    assert runs[best["trial"]] == "FINISHED"
    files = {p: p.stat().st_mtime_ns for p in tmp_path.glob("storage/study/*/*.jsonl")}
    again = here("sweep", file, "--storage", tmp_path / "storage", "--tracking-uri", "none")
    assert again.code == 0, again.err
    assert "Everything was done already; nothing was trained or measured." in again.out
    assert "nothing to train" in again.err
    assert "stopped at 300" in again.err
    assert "Ray" not in again.err
    assert {p: p.stat().st_mtime_ns for p in files} == files
    notes = (tmp_path / "storage/study/report/table.md").read_text()
    assert "| stopped |" in notes
    assert "by asha: fd/digits@1 is" in notes


def test_a_sweep_whose_time_is_up_saves_says_how_to_go_on_and_goes_on(tmp_path):
    long = {"train": {"steps": 4000, "checkpoint_every": 4000, "log_every": 50}, "curve": None}
    panels = {"seeds": {"grid": {"seed": [0, 1, 2, 3]}}}
    measured = {"num_samples": 256, "nfe": [1]}
    file = write(tmp_path / "study.yaml", CT, RUN, long, panels=panels, evaluate=measured)
    with swept(tmp_path, file, "--max-hours", 1 / 3600) as running:  # over before anything is trained
        nothing = running.ended()
        running.gone(20)
    assert nothing.code == 3, nothing.err
    for hours in (20 / 3600, 35 / 3600, 60 / 3600, 100 / 3600):  # until one was caught, however busy the machine
        with swept(tmp_path, file, "--max-hours", hours) as running:
            ran = running.ended()
            running.gone(20)
        assert ran.code == 3, ran.err
        if list(tmp_path.glob("storage/study/ct-*/checkpoints/step-*")):
            break
    assert "Traceback" not in ran.err
    said = " ".join(ran.err.split())
    assert "models are trained" in said
    assert "evaluation" in said.rpartition("left: ")[2]
    again = shlex.split(re.search(r"Go on with: cmray (.*)$", ran.err.strip().splitlines()[-1]).group(1))
    assert again == [
        "sweep", str(file), "--max-hours", str(hours), "--storage", str(tmp_path / "storage"),
        "--tracking-uri", "none",
    ]  # fmt: skip
    saved = {}
    for folder in trials(tmp_path).values():
        assert not (folder / "error.txt").exists()
        assert not (folder / "stop").exists()
        if not (folder / "result.json").exists():
            steps = [read_checkpoint_facts(c).step for c in folder.glob("checkpoints/step-*")]
            saved[folder.name] = max(steps, default=0)
    assert any(0 < step < 4000 for step in saved.values()), "no trial was caught on its way"
    assert not list(tmp_path.glob("storage/study/*/evaluations/*"))
    ran = to_its_end(tmp_path, file, "--json")
    assert ran.code == 0, ran.err
    for step in saved.values():
        assert step == 0 or f"resumes at {step:,}" in ran.err
    assert ran.json["trained"] == len(saved)
    assert ran.json["left"] == []
    assert all(len(t["evaluations"]) == 1 for t in ran.json["trials"])
    for folder in trials(tmp_path).values():
        logged = [e.step for e in read_events(folder / "events.jsonl") if e.kind == "train"]
        assert logged == list(range(50, 4001, 50)), "steps twice or not at all"


def test_trials_of_one_and_two_workers_share_the_machine_and_one_that_fails_sinks_nobody(tmp_path, monkeypatch):
    """Three logical CPUs for trials: a small one has to run beside each large one, and three small ones at once."""
    room = Capacity(3 + DATA_CPUS, 0, "this machine")
    monkeypatch.setattr(connect, "local_capacity", lambda: room)
    monkeypatch.setattr(sweep, "local_capacity", lambda: room)
    large, bad = {"resources.workers": 2}, {"train.optimizer.lr": 1e12, "resources.retries": 1}
    points = [
        {"seed": 1},
        {"seed": 2, **large},
        {"seed": 3},
        {"seed": 4, **large},
        {"seed": 5},
        {"seed": 6, **large, **bad},
    ]
    short = {"train": {"steps": 700}}
    file = write(tmp_path / "study.yaml", CT, RUN, short, panels={"mixed": {"points": points}}, curve=None)
    ran = here("sweep", file, "--storage", tmp_path / "storage", "--tracking-uri", "none", "--json")
    assert ran.code == 1, ran.err
    assert (ran.json["trained"], ran.json["failed"]) == (5, 1)
    (failed,) = [t for t in ran.json["trials"] if t["status"] == "failed"]
    assert failed["error"].startswith("the loss is ")
    errors = sorted((tmp_path / "storage" / failed["trial"] / "errors").iterdir())
    assert [e.name for e in errors] == ["1.txt", "2.txt"]
    assert all("Traceback" in e.read_text() for e in errors)
    spans = {}
    for folder in trials(tmp_path).values():
        if (folder / "result.json").exists():
            workers = json.loads((folder / "result.json").read_text())["world_size"]
            times = [e.time for e in read_events(folder / "events.jsonl")]
            spans[folder.name] = (times[0], times[-1], workers)
    assert sorted(w for _, _, w in spans.values()) == [1, 1, 1, 2, 2]
    for at in (edge for first, last, _ in spans.values() for edge in (first, last)):
        assert sum(w for first, last, w in spans.values() if first <= at <= last) <= 3
    beside = [
        (a, b)
        for a, (a0, a1, w) in spans.items()
        for b, (b0, b1, v) in spans.items()
        if (w, v) == (1, 2) and a0 < b1 and b0 < a1
    ]
    assert beside, "no small trial ran while a large one did"
