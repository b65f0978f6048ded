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
from cmray.engine.spent import Cost, CostMeter, gpu_joules, nvml_joules

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
