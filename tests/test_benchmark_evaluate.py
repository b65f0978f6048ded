"""The benchmark of measuring images runs and prints what it promises; its figures are for a quiet machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "analysis/benchmarks/evaluate.py"


def bench(*args: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, args)], capture_output=True, text=True, timeout=600, env=environment
    )


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_few_images_are_measured_by_all():
    done = bench("--images", 8, "--repeats", 1, "--threads", 1, "--same", 3, "--only", "clean-fid", "cmray")
    assert done.returncode == 0, done.stderr[-2000:]
    rows = {line.split(" | ")[0].removeprefix("| "): line for line in done.stdout.splitlines() if line.startswith("| ")}
    assert {"clean-fid", "cmray"} <= rows.keys()
    assert "mean features as clean-fid's" in done.stdout
    assert "of the largest, met" in done.stdout
    assert "statistics of 3 images by 1, 2 and 4 actors" in done.stdout


@pytest.mark.slow
def test_more_of_the_same_than_there_are_is_refused():
    done = bench("--images", 4, "--same", 5)
    assert done.returncode == 2
    assert "--images 4: at least 2, and as many as --same 5" in done.stderr
