"""The benchmark of datasets runs and prints what it promises; its figures are for a quiet machine."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "analysis/benchmarks/data.py"
TITLES = (
    "Preparing",
    "One worker, batch 256",
    "Memory of a resident dataset",
    "Workers that stream at once",
    "Memory of a whole session that streams",
    "A training step",
    "Targets",
)


def bench(*args: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(SCRIPT), *map(str, args)], capture_output=True, text=True, timeout=900)


def test_a_source_that_is_not_there_is_one_line(tmp_path):
    done = bench("--source", tmp_path / "nothing")
    assert done.returncode == 1
    assert done.stderr.strip() == (
        f"--source {tmp_path / 'nothing'} is no folder; "
        "give a folder of CIFAR-10 in Parquet (the Hugging Face layout), or --digits"
    )


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_everything_is_measured_on_the_digits():
    done = bench("--digits", "--seconds", 0.2)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [line for line in done.stdout.splitlines() if line.startswith("|")]
    for title in TITLES:
        assert f"\n{title}" in done.stdout, title
    for feed in ("resident", "mmap", "stream through Ray", "stream, read by the worker itself"):
        assert any(row.startswith(f"| **cmray, {feed}** |") for row in rows), feed
    for peer in ("torch DataLoader, image folder", "Ray Data, streaming", "Ray Data, .materialize()"):
        assert any(row.startswith(f"| {peer}") for row in rows), peer
    assert any(row.startswith("| Hugging Face datasets") for row in rows) or "pip install datasets" in done.stdout
