"""A sweep on a cluster that has no node to train on: its autoscaler brings them, and takes them away again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import pytest
from cli_run import CT, apart, good, write
from growing_cluster import MIB, growing

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

SMALL = {"CPU": 2, "object_store_memory": 100 * MIB}
KINDS = {"cpu": {"resources": SMALL, "node_config": {}, "min_workers": 0, "max_workers": 3}}

COUNT = """
import json, sys, ray
ray.init(address=sys.argv[1], log_to_driver=False, logging_level="ERROR")
from ray.util import placement_group_table
groups = [g["state"] for g in placement_group_table().values()]
print(json.dumps({"nodes": sum(n["Alive"] for n in ray.nodes()), "held": sum(s != "REMOVED" for s in groups)}))
"""


def now(address: str, environment: dict[str, str]) -> dict[str, int]:
    done = subprocess.run(
        [sys.executable, "-c", COUNT, address], env={**os.environ, **environment}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_a_sweep_asks_for_the_nodes_it_needs_and_they_leave_when_it_is_done(tmp_path):
    wide = {"resources": {"workers": 2}, "curve": None}
    file = write(tmp_path / "wide.yaml", CT, wide, panels={"N": {"points": [{"seed": 0}]}})
    with growing(KINDS, max_workers=3, v2=True) as (address, environment):
        assert now(address, environment)["nodes"] == 1
        arguments = ("--storage", tmp_path / "storage", "--tracking-uri", "none", "--address", address, "--json")
        ran = good(apart(tmp_path / "desk", "sweep", file, *arguments, **environment))
        assert "Asking the cluster for room for 1 trial at once; it has 1 node with 0 CPUs" in ran.err
        assert "There is room for 1 trial now: " in ran.err
        assert ran.json["trained"] == 1
        end = time.monotonic() + 120
        while (state := now(address, environment))["nodes"] > 1:
            assert time.monotonic() < end, f"idle nodes stay: {state}"
            time.sleep(2)
        assert state["held"] == 0


def test_a_trial_that_the_cluster_can_never_hold_is_refused_before_anything_starts(tmp_path):
    file = write(tmp_path / "huge.yaml", CT, resources={"workers": 16}, panels={"N": {"points": [{"seed": 0}]}})
    with growing(KINDS, max_workers=3, v2=False) as (address, environment):
        arguments = ("--storage", tmp_path / "storage", "--tracking-uri", "none", "--address", address)
        ran = apart(tmp_path / "desk", "sweep", file, *arguments, **environment)
        assert ran.code == 2
        assert "needs 16 cpus" in ran.err
        assert "at its largest has 5" in ran.err
        assert now(address, environment)["nodes"] == 1
    assert not (tmp_path / "storage").exists()
