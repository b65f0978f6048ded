"""Runs whose nodes come and go, and trials of several sizes on uneven nodes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_run import EDM, Running, good, here, write
from small_run import go
from survival import DDP, last_step, open_trials

from cmray.config.checkpoint_facts import read_checkpoint_facts
from cmray.config.plan import plan_experiment
from cmray.tracking.events import read_events

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

#: two workers on nodes of three and of two CPUs, one of which is Ray Data's, are on one node each; on one thread
WIDE = {"workers": 2, "cpus_per_worker": 1.6}
LOG = 50


def losses(folder: Path, cut: list[int]) -> dict[int, float]:
    """Mean losses since the log point before, but for those in whose steps the run was begun again at a step `cut`."""
    events = [e for e in read_events(folder / "events.jsonl") if e.kind == "train"]
    return {e.step: e.metrics["loss"] for e in events if not any(e.step - LOG < at < e.step for at in cut)}


def test_an_elastic_run_shrinks_and_grows_with_its_nodes_and_ends_with_the_same_weights(tmp_path, cluster):
    """Two shares sum to the same bits in either order, so nothing at all may differ from one process's run."""
    for cpus in (3, 2):
        cluster.do("add", cpus=cpus)
    file = write(
        tmp_path / "study.yaml",
        EDM,
        net={"width": 64, "depth": 2},
        train={"steps": 2500, "batch_size": 1024, "checkpoint_every": 200, "log_every": LOG},
        resources={**WIDE, "min_workers": 1},
        curve=None,
    )
    storage = tmp_path / "storage"

    def trial() -> Path | None:
        return next(iter(open_trials(tmp_path, "study")), None)

    def workers() -> list[int]:
        found = trial()
        events = read_events(found / "events.jsonl") if found else []
        return [int(e.metrics["workers"]) for e in events if e.kind == "workers"]

    arguments = ("train", file, "--storage", storage, "--tracking-uri", "none", "--address", cluster.address)
    with Running(tmp_path / "desk", *arguments, RAY_AUTH_MODE="disabled") as running:
        running.until(lambda: trial() and last_step(trial()) >= 300, "step 300", 300)
        assert workers() == [2]
        assert cluster.do("where", name=DDP) == [0, 1], "one worker on each node"
        cluster.do("kill", node=1)
        running.until(lambda: workers() == [2, 1], "one worker to go on alone", 300)
        shrunk_at = last_step(trial())
        assert shrunk_at <= 2500 - 500, "too fast to grow again"
        cluster.do("add", cpus=2)
        running.until(lambda: workers() == [2, 1, 2], "another worker to join", 300)
        assert cluster.do("where", name=DDP) == [0, 2]
        ran = running.ended(540)
    good(ran)
    assert "with 1 worker instead of 2" in ran.err
    assert "there is room for more workers; it saved step" in ran.err
    (planned,) = plan_experiment(file, [], storage).trials
    go(planned.run, tmp_path / "alone")
    cut = [e.step for e in read_events(planned.folder / "events.jsonl") if e.kind == "workers"]
    alone = losses(tmp_path / "alone", cut)
    assert len(alone) >= 2500 // LOG - 2
    assert alone == pytest.approx(losses(planned.folder, cut), rel=1e-6)
    (one,), (other,) = ((f / "checkpoints").iterdir() for f in (tmp_path / "alone", planned.folder))
    assert read_checkpoint_facts(one).files == read_checkpoint_facts(other).files
    assert [e.step for e in read_events(planned.folder / "events.jsonl") if e.kind == "train"] == list(
        range(LOG, 2501, LOG)
    )
    again = good(here("train", file, "--storage", storage, "--tracking-uri", "none"))
    assert "was trained already" in again.out
    assert cluster.do("left") == []


def test_two_ranks_on_two_nodes_equal_one_process_with_the_joined_batch(tmp_path, cluster):
    for _ in range(2):
        cluster.do("add", cpus=1)
    script = Path(__file__).with_name("two_nodes.py")
    told = subprocess.run(
        [sys.executable, script, cluster.address, tmp_path], capture_output=True, text=True, timeout=300
    )
    assert told.returncode == 0, told.stderr
    one, two, alone = (torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("0", "1", "alone"))
    assert one.pop("node") != two.pop("node")
    for name, value in one.items():
        if name != "loss":
            assert torch.equal(value, two[name]), f"{name} differs between the ranks"
            assert torch.equal(value, alone[name]), f"{name} differs from one process's"
    assert len(one["loss"]) == 20
    assert float(((one["loss"] + two["loss"]) / alone["loss"] - 1).abs().max()) <= 1e-6


def test_trials_of_one_two_and_three_workers_share_uneven_nodes(tmp_path, cluster):
    """Nodes of 3, 2 and 1 CPUs: six, of which Ray Data keeps one. None waits forever for what another holds."""
    for cpus in (3, 2, 1):
        cluster.do("add", cpus=cpus)
    sizes: list[dict[str, Any]] = [
        {"workers": 3}, {"workers": 1}, {"workers": 1, "cpus_per_worker": 2}, {"workers": 2},
    ]  # fmt: skip
    points = [{"seed": i, **{f"resources.{k}": v for k, v in size.items()}} for i, size in enumerate(sizes)]
    file = write(
        tmp_path / "study.yaml",
        EDM,
        train={"steps": 40, "batch_size": 30},
        panels={"sizes": {"points": points}},
        curve=None,
    )
    arguments = ("sweep", file, "--storage", tmp_path / "storage", "--tracking-uri", "none")
    with Running(tmp_path / "desk", *arguments, "--address", cluster.address, RAY_AUTH_MODE="disabled") as running:
        ran = running.ended(540)
    good(ran)
    found = [json.loads(path.read_text())["world_size"] for path in (tmp_path / "storage").glob("*/*/result.json")]
    assert sorted(found) == sorted(size["workers"] for size in sizes)
    assert cluster.do("left") == []
