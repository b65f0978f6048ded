"""What a training run takes: seconds, GPU-seconds, CPU-seconds, and the energy of its GPUs where NVML tells it."""

from __future__ import annotations

import ctypes
import functools
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from cmray.core.files import write_atomic
from cmray.engine.session import Session, reduce_sum
from cmray.tracking.events import read_events

#: a line for every time that training began or went on
ATTEMPTS = "attempts.jsonl"
#: NVIDIA's driver brings it, so it needs no package of its own
NVML = "libnvidia-ml.so.1"


@dataclass
class Cost:
    """Sums over all processes of a run and over all its resumed parts. None: a part of the run did not tell."""

    seconds: float = 0.0  # on the clock
    gpu_seconds: float | None = 0.0  # GPUs held times seconds
    cpu_seconds: float | None = 0.0
    energy_joules: float | None = 0.0  # of the GPUs alone


class CostMeter:
    """Adds to `cost` what is spent from its construction on.

    Args:
        gpus: that each process holds. Below 1 others compute on the same GPU, and its energy is not known.
    """

    def __init__(self, cost: Cost, session: Session, gpus: float):
        self.cost, self._session = cost, session
        self._gpus = gpus if session.device.type == "cuda" else 0.0
        self._at, self._cpu, self._joules = time.monotonic(), time.process_time(), self._energy()

    def _energy(self) -> float | None:
        return gpu_joules(self._session.device) if self._gpus >= 1 else None

    def settle(self) -> None:
        """Adds what was spent since the last call, whatever it was spent on: steps, waiting for data, checkpoints, and
        waiting for points of the curve. The seconds have no part for what was measured while steps went on; the
        CPU-seconds do. All processes of a run call it together."""
        before = self._at, self._cpu, self._joules
        self._at, self._cpu, self._joules = time.monotonic(), time.process_time(), self._energy()
        known = before[2] is not None and self._joules is not None
        joules = self._joules - before[2] if known else math.nan  # type: ignore[operator]
        own = torch.tensor([self._cpu - before[1], joules], dtype=torch.float64, device=self._session.device)
        cpu, energy = reduce_sum(own, self._session).tolist()
        seconds = self._at - before[0]
        cost = self.cost
        cost.seconds += seconds
        cost.gpu_seconds = _added(cost.gpu_seconds, seconds * self._gpus * self._session.world_size)
        cost.cpu_seconds = _added(cost.cpu_seconds, cpu)
        cost.energy_joules = _added(cost.energy_joules, None if math.isnan(energy) else energy)


def _added(total: float | None, more: float | None) -> float | None:
    return None if total is None or more is None else total + more


def note_attempt(folder: Path, step: int) -> None:
    """Notes that the training in `folder` begins at `step`, and what an interrupted one before has spent for nothing.

    That is the time from the last event that stays (or its own beginning) to its last event. For rank 0, before the
    events after `step` are dropped.
    """
    attempts, lost = _attempts(folder), 0.0
    if attempts:
        began = attempts[-1]["began"]
        events = [e for e in read_events(folder / "events.jsonl") if e.time >= began]
        if events and max(e.step for e in events) > step:
            stays = max((e.time for e in events if e.step <= step), default=began)
            lost = max(0.0, max(e.time for e in events) - stays)
    lines = [*attempts, {"began": time.time(), "step": step, "lost": lost}]
    write_atomic(folder / ATTEMPTS, "".join(json.dumps(line) + "\n" for line in lines))


def repeated_seconds(folder: Path) -> float:
    """Seconds on the clock that interrupted trainings in `folder` have spent on steps that were taken again."""
    return sum(line["lost"] for line in _attempts(folder))


def with_repeated(cost: Cost, seconds: float, gpus: float) -> Cost:
    """What a training took together with `seconds` that were spent for nothing, on `gpus` in all.

    The CPU-seconds and the energy of these were never told, so they count at the rate of the others.
    """
    rate = 1 + seconds / cost.seconds if cost.seconds else 1.0
    return Cost(
        cost.seconds + seconds,
        _added(cost.gpu_seconds, seconds * gpus),
        None if cost.cpu_seconds is None else cost.cpu_seconds * rate,
        None if cost.energy_joules is None else cost.energy_joules * rate,
    )


def _attempts(folder: Path) -> list[dict[str, float]]:
    path = folder / ATTEMPTS
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def gpu_joules(device: torch.device, library: str = NVML) -> float | None:
    """Joules that a GPU has used since its driver was loaded; None for other devices and where NVML does not tell.

    Args:
        library: file name of NVML.
    """
    if device.type != "cuda":
        return None
    uuid = getattr(torch.cuda.get_device_properties(device), "uuid", None)
    return None if uuid is None else nvml_joules(f"GPU-{uuid}", library)


def nvml_joules(uuid: str, library: str = NVML) -> float | None:
    """Joules of the GPU with this UUID ("GPU-..."); None where NVML is missing or does not tell."""
    nvml = _nvml(library)
    if nvml is None:
        return None
    handle, millijoules = ctypes.c_void_p(), ctypes.c_ulonglong()
    if nvml.nvmlDeviceGetHandleByUUID(uuid.encode(), ctypes.byref(handle)) != 0:
        return None
    if nvml.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(millijoules)) != 0:
        return None
    return millijoules.value / 1000


@functools.cache
def _nvml(library: str) -> ctypes.CDLL | None:
    """NVML, begun; None where it is missing or does not begin."""
    try:
        nvml = ctypes.CDLL(library)
        began = nvml.nvmlInit_v2() == 0
        return nvml if began and nvml.nvmlDeviceGetTotalEnergyConsumption else None
    except (OSError, AttributeError):
        return None
