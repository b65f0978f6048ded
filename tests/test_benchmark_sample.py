"""The benchmark of sampling runs and prints what it promises; its figures are for a quiet machine."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "analysis/benchmarks/sample.py"


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_sampling_is_measured_beside_its_peer_with_the_same_weights():
    pytest.importorskip("diffusers", reason="diffusers is not installed")
    tiny = ["--images", "8", "--block", "4", "--repeats", "1", "--memory", "4", "8", "--threads", "1"]
    done = subprocess.run([sys.executable, str(SCRIPT), *tiny], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-2000:]
    *text, last = done.stdout.strip().splitlines()
    assert "diffusers" in text[0]
    for row in ("| cmray |", "| diffusers |", "| network alone |"):
        assert any(line.startswith(row) for line in text), row
    facts = json.loads(last)
    assert 0 < facts["apart"] < 1e-4
    assert all(rate > 0 for rate in facts["rates"].values())
    assert set(facts["memory_mib"]) == {"4", "8"}
