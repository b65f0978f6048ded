"""Machines that are taken away with a notice or without, while another is free or none is."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from cli_run import closed_port
from survival import DDP, TEACHER, TUNE, Blow, attempts, made, open_trials, reached, sweeping

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

CPUS = 2


class Cluster:
    """`ray_nodes.py` as a process."""

    def __init__(self, folder: Path):
        self._log = (folder / "cluster.txt").open("w")
        script = Path(__file__).with_name("ray_nodes.py")
        self._process = subprocess.Popen(
            [sys.executable, str(script), str(closed_port())],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True, start_new_session=True,
        )  # fmt: skip
        self.address = self._answer()["address"]

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, Path(self._log.name).read_text()
        return json.loads(line)

    def do(self, what: str, **arguments: Any) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": what, **arguments}) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def busy(self, name: str) -> int:
        """The node where a process of that name runs."""
        end = time.monotonic() + 30
        while not (found := self.do("where", name=name)):
            assert time.monotonic() < end, f"{name} runs nowhere"
        return found[0]

    def end(self) -> None:
        family = psutil.Process(self._process.pid).children(recursive=True)
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(30)
        finally:
            self._process.kill()
            for process in family:
                if process.is_running():
                    process.kill()
            self._log.close()


@pytest.fixture
def cluster(tmp_path) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path)
    try:
        yield cluster
    finally:
        cluster.end()


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
        if spare:
            cluster.do("add", cpus=CPUS)
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
        running.until(reached(tmp_path, TEACHER, 250), "step 250 of the teacher")
        notice(TEACHER, DDP)
        running.until(reached(tmp_path, TEACHER, 900), "step 900 of the teacher")
        loss("without another", TEACHER, DDP, spare=False)
        running.until(reached(tmp_path, "study", 250), "step 250 of the study", 240)
        cluster.do("add", cpus=CPUS)
        notice("study", TUNE)
        running.until(reached(tmp_path, "study", 900), "step 900 of the study")
        loss("with another", "study", TUNE, spare=True)
        ran = running.ended()
    assert ran.code == 0, ran.err
    assert "Traceback" not in ran.err
    assert ran.err.count("its node is taken away; it saved step") >= 2
    assert made(tmp_path) == undisturbed
    assert cluster.do("left") == {"actors": 0, "groups": 0}
