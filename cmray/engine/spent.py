"""What a training run takes: seconds, GPU-seconds, CPU-seconds, and the energy of its GPUs where NVML tells it."""

from __future__ import annotations

import ctypes
import functools
import math
import time
from dataclasses import dataclass

import torch

from cmray.engine.session import Session, reduce_sum

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
