"""What a training run says it took: clocks of the processes, and a GPU's energy as NVML's library tells it."""

from __future__ import annotations

import json
import shutil
import subprocess
import time

import pytest
import torch
from small_run import CPU, checkpoint, go, small

from cmray.config.checkpoint_facts import META, read_checkpoint_facts
from cmray.engine.result import read_result
from cmray.engine.session import PlainSession
from cmray.engine.spent import (
    ATTEMPTS,
    Cost,
    CostMeter,
    gpu_joules,
    note_attempt,
    nvml_joules,
    repeated_seconds,
    with_repeated,
)
from cmray.tracking.events import EventLog
from cmray.tracking.records import Event

#: an NVML whose one GPU uses 1.5 J from question to question
NVML = """
#include <string.h>
static unsigned long long used = 1000;
int nvmlInit_v2(void) { return 0; }
int nvmlDeviceGetHandleByUUID(const char *uuid, void **device) {
    *device = (void *)uuid;
    return strcmp(uuid, "GPU-known") && strcmp(uuid, "GPU-old") ? 6 : 0;
}
int nvmlDeviceGetTotalEnergyConsumption(void *device, unsigned long long *millijoules) {
    if (strcmp((const char *)device, "GPU-old") == 0) return 3;
    *millijoules = used += 1500;
    return 0;
}
"""


@pytest.fixture(scope="module")
def nvml(tmp_path_factory) -> str:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler for a library that answers like NVML")
    folder = tmp_path_factory.mktemp("nvml")
    (folder / "nvml.c").write_text(NVML)
    built = folder / "libnvml.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", built, folder / "nvml.c"], check=True, timeout=60)
    return str(built)


def test_energy_is_the_difference_of_what_nvml_tells_in_joules(nvml):
    first, second = nvml_joules("GPU-known", nvml), nvml_joules("GPU-known", nvml)
    assert first is not None
    assert second is not None
    assert second - first == pytest.approx(1.5)


def test_energy_is_unknown_where_nvml_does_not_tell(nvml, tmp_path):
    assert nvml_joules("GPU-old", nvml) is None, "a GPU without a counter"
    assert nvml_joules("GPU-other", nvml) is None
    assert nvml_joules("GPU-known", "libno-such-nvml.so") is None
    (tmp_path / "libother.so").write_text("no library")
    assert nvml_joules("GPU-known", str(tmp_path / "libother.so")) is None
    assert nvml_joules("GPU-known", "libc.so.6") is None, "a library without the functions"
    assert gpu_joules(CPU) is None


def test_a_run_on_the_cpu_counts_its_seconds_and_no_gpu(tmp_path):
    began = time.monotonic()
    result = go(small({"train.steps": 40}), tmp_path).result
    wall = time.monotonic() - began
    assert result is not None
    assert 0 < result.seconds <= wall
    assert result.cpu_seconds > 0
    assert result.gpu_seconds == 0
    assert result.energy_joules is None
    assert result.nimg == 40 * 8


def test_the_parts_of_an_interrupted_run_add_up(tmp_path):
    class Stopped(PlainSession):
        def should_stop(self) -> bool:
            return True

    run = small({"train.steps": 6})
    assert go(run, tmp_path, session=Stopped(CPU)).status == "stopped"
    first = read_checkpoint_facts(checkpoint(tmp_path))
    assert first.step == 1
    result = go(run, tmp_path).result
    assert result is not None
    assert result.seconds > first.seconds > 0
    assert result.cpu_seconds > first.cpu_seconds > 0


def test_what_an_older_checkpoint_did_not_count_stays_unknown(tmp_path):
    class Stopped(PlainSession):
        def should_stop(self) -> bool:
            return True

    run = small({"train.steps": 6})
    go(run, tmp_path, session=Stopped(CPU))
    meta = checkpoint(tmp_path) / META
    older = json.loads(meta.read_text())
    for name in ("gpu_seconds", "cpu_seconds", "energy_joules"):
        del older[name]
    meta.write_text(json.dumps(older))
    result = go(run, tmp_path).result
    assert result is not None
    assert result.seconds > older["seconds"]
    assert (result.gpu_seconds, result.cpu_seconds, result.energy_joules) == (None, None, None)


def test_an_older_result_is_still_one(tmp_path):
    go(small({"train.steps": 2}), tmp_path)
    file = tmp_path / "result.json"
    older = json.loads(file.read_text())
    for name in ("gpu_seconds", "cpu_seconds", "energy_joules"):
        del older[name]
    file.write_text(json.dumps(older))
    found = read_result(tmp_path)
    assert found is not None
    assert found.seconds == older["seconds"]
    assert found.gpu_seconds is None


def test_the_meter_adds_what_passed_between_its_calls():
    cost = Cost()
    meter = CostMeter(cost, PlainSession(CPU), 1.0)
    end = time.process_time() + 0.02
    while time.process_time() < end:
        pass
    meter.settle()
    assert cost.cpu_seconds is not None
    assert 0.02 <= cost.cpu_seconds < 1
    once = cost.cpu_seconds
    meter.settle()
    assert cost.cpu_seconds - once < 0.01, "the first part was counted twice"
    assert cost.gpu_seconds == 0, "a process on the CPU holds no GPU, whatever was asked for"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_that_works_uses_energy():
    device = torch.device("cuda", 0)
    before = gpu_joules(device)
    if before is None:
        pytest.skip("NVML does not tell the energy of this GPU")
    x = torch.randn(4096, 4096, device=device)
    end = time.monotonic() + 2
    while time.monotonic() < end:
        x = (x @ x).tanh()
        torch.cuda.synchronize()
    used = gpu_joules(device)
    assert used is not None
    assert 10 < used - before < 5000


def test_what_an_interrupted_training_did_for_nothing_is_counted_once_for_each(tmp_path):
    """The seconds between two attempts, in which nothing trained, are no cost."""
    log = EventLog(tmp_path / "events.jsonl")

    def attempt(began: float, step: int, *points: tuple[int, float]) -> None:
        note_attempt(tmp_path, step)
        log.truncate_after(step)
        lines = [json.loads(line) for line in (tmp_path / ATTEMPTS).read_text().splitlines()]
        lines[-1]["began"] = began
        (tmp_path / ATTEMPTS).write_text("".join(json.dumps(line) + "\n" for line in lines))
        for at, when in points:
            log.append(Event(kind="train", step=at, nimg=at, time=when, metrics={}))

    attempt(100, 0, (10, 101), (20, 102), (30, 103.5))  # a checkpoint of step 20
    attempt(200, 20, (30, 201), (40, 203))  # killed before it had one of its own
    assert repeated_seconds(tmp_path) == pytest.approx(1.5)
    attempt(300, 20, (30, 301), (40, 302))  # one of step 40
    assert repeated_seconds(tmp_path) == pytest.approx(1.5 + 3)
    attempt(400, 40)  # it was asked to stop, and had saved
    attempt(500, 40)
    assert repeated_seconds(tmp_path) == pytest.approx(4.5)


def test_repeated_work_costs_what_other_work_costs():
    told = with_repeated(Cost(10.0, 20.0, 40.0, None), 5.0, 2)
    assert told == Cost(15.0, 30.0, 60.0, None)
    assert with_repeated(Cost(0.0, 0.0, 0.0, 0.0), 0.0, 0) == Cost(0.0, 0.0, 0.0, 0.0)


def test_the_result_of_a_resumed_run_counts_what_was_lost(tmp_path):
    run = small({"train.steps": 4, "train.checkpoint_every": 2, "train.log_every": 1})
    go(run, tmp_path)
    assert read_result(tmp_path).repeated_seconds == 0
    (tmp_path / "result.json").unlink()
    shutil.rmtree(checkpoint(tmp_path))  # the only one that is kept: all steps are taken again
    log = EventLog(tmp_path / "events.jsonl")
    began = json.loads((tmp_path / ATTEMPTS).read_text())["began"]
    log.append(Event(kind="train", step=5, nimg=5, time=began + 1000, metrics={}))
    result = go(run, tmp_path).result
    assert result.repeated_seconds == pytest.approx(1000)
    assert result.seconds > result.repeated_seconds
    assert not result.gpu_seconds
