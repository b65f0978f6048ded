"""Machines that are taken away with a notice or without, while another is free or none is."""

from __future__ import annotations

import time

import pytest
from survival import DDP, TEACHER, TUNE, Blow, attempts, equal, made, open_trials, reached, sweeping

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

CPUS = 2


def test_nodes_are_taken_away_with_and_without_notice_and_with_and_without_another(tmp_path, cluster, undisturbed):
    """In one sweep, while two ranks train and while trials run under Tune."""

    def notice(experiment: str, name: str) -> None:
        """`ray drain-node`: the trial saves, leaves and goes on elsewhere, and the machine is gone."""
        node = cluster.busy(name)
        blow = Blow(f"a notice to the node of {name}", tmp_path, experiment)
        before = {trial: len(attempts(trial)) for trial in open_trials(tmp_path, experiment)}
        cluster.do("drain", node=node, seconds=120)
        running.until(blow.went_on, f"{experiment} to go on elsewhere")
        blow.taken(most=0)
        assert any(
            attempts(trial)[count]["lost"] == 0 for trial, count in before.items() if len(attempts(trial)) > count
        )
        cluster.do("kill", node=node)

    def loss(case: str, experiment: str, name: str, spare: bool) -> None:
        """SIGKILL to a raylet and all that it has started."""
        node = cluster.busy(name)
        blow = Blow(f"SIGKILL to the node of {name}, {case}", tmp_path, experiment)
        cluster.do("kill", node=node)
        if not spare:
            time.sleep(5)
            assert not blow.went_on(), "there is no other node"
            assert running.process.poll() is None
            cluster.do("add", cpus=CPUS)
        running.until(blow.went_on, f"{experiment} to go on elsewhere", 180)
        blow.taken()

    for _ in range(2):
        cluster.do("add", cpus=CPUS)
    with sweeping(tmp_path, "--address", cluster.address, RAY_AUTH_MODE="disabled") as running:
        # a trial takes some six seconds: whatever needs seconds comes before the step is waited for
        running.until(reached(tmp_path, TEACHER, 150), "step 150 of the teacher")
        notice(TEACHER, DDP)
        running.until(reached(tmp_path, TEACHER, 700), "step 700 of the teacher")
        loss("without another", TEACHER, DDP, spare=False)
        cluster.do("add", cpus=CPUS)
        running.until(reached(tmp_path, "study", 150), "step 150 of the study", 240)
        notice("study", TUNE)
        cluster.do("add", cpus=CPUS)
        running.until(reached(tmp_path, "study", 700), "step 700 of the study")
        loss("with another", "study", TUNE, spare=True)
        ran = running.ended()
    assert ran.code == 0, ran.err
    assert "Traceback" not in ran.err
    assert ran.err.count("its node is taken away; it saved step") >= 2
    equal(made(tmp_path), undisturbed)
    assert cluster.do("left") == [], "leaked"
