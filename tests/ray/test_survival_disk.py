"""A disk that fills up: one line that names the folder, the last whole checkpoint kept, and on it goes with room."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_run import CT, Ran, Running, good, write
from survival import EVERY, LOG, LONG, STEPS, last_saved, reached, trained

from cmray.config.checkpoint_facts import read_checkpoint_facts
from cmray.engine.checkpoint import newest_checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """An empty file system of 8 MiB, as a study's storage folder."""
    place = tmp_path / "storage"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(place)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("a small file system can be mounted by root only, and not in every container")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def fill(place: Path) -> Path:
    """Takes all the room that is left."""
    balloon = place / "balloon"
    with balloon.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(1 << 12))
        except OSError:
            return balloon


def run_in(folder: Path, workers: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    panels = {"N": {"grid": {"objective.num_sigmas": [9]}}}
    return write(folder / "run.yaml", CT, LONG, resources={"workers": workers}, panels=panels)


def sweep(folder: Path, workers: int) -> Running:
    storage = folder / "storage"
    file = run_in(folder / "file", workers)
    return Running(folder / "desk", "sweep", file, "--storage", storage, "--tracking-uri", "none")


def weights(folder: Path) -> dict[str, str]:
    (checkpoint,) = folder.glob("storage/run/*/checkpoints/step-*")
    return read_checkpoint_facts(checkpoint).files


@pytest.mark.parametrize("workers", [2, 1], ids=["DDP", "Tune"])
def test_a_full_disk_is_said_in_one_line_and_the_run_goes_on_when_there_is_room(tmp_path, small_disk, workers):
    with sweep(tmp_path, workers) as running:
        running.until(reached(tmp_path, "run", 350), "step 350")
        balloon = fill(small_disk)
        saved = last_saved(tmp_path, "run")
        ran: Ran = running.ended(180)
        running.gone(20)
    assert ran.code in (1, 2), ran.err
    assert "Traceback" not in ran.err
    (trial,) = small_disk.glob("run/ct-*")
    assert "No space left on device" in ran.err
    assert str(small_disk) in ran.err
    found = newest_checkpoint(trial / "checkpoints", pytest.fail)
    assert found is not None
    assert found[0].step >= saved >= 350 - EVERY - LOG
    assert not list(trial.rglob(".step-*")), "half a checkpoint stayed"
    balloon.unlink()
    with sweep(tmp_path, workers) as running:
        again = good(running.ended())
    assert f"resumes at {found[0].step:,}" in again.err
    assert not (trial / "error.txt").exists()
    whole = tmp_path / "whole"
    with sweep(whole, workers) as running:
        good(running.ended())
    assert weights(tmp_path) == weights(whole)
    (other,) = whole.glob("storage/run/ct-*")
    assert trained(trial, STEPS) == trained(other, STEPS)
