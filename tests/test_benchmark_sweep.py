"""The benchmark of sweeps runs and prints what it promises; its figures are for a quiet machine."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "analysis/benchmarks/sweep.py"


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_start_up_and_steady_state_are_measured_beside_their_peers():
    tiny = ["--trials", "1", "--seconds", "0.1", "--steps", "60", "--repeats", "1"]
    done = subprocess.run([sys.executable, str(SCRIPT), *tiny], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-2000:]
    *text, last = done.stdout.strip().splitlines()
    assert "torch" in text[0]
    assert "cores" in text[0]
    for row in ("| cmray |", "| Tune + Train |", "| torchrun |", "| Ray Train |"):
        assert any(line.startswith(row) for line in text), row
    facts = json.loads(last)
    for who in ("cmray", "Tune + Train"):
        (found,) = facts["startup"]["rows"][who]
        assert found["total"] > found["work"] > 0
    assert facts["steady"]["kept"] > 0
