"""How long a run will take, from a few measured forwards and backwards of its network on this machine."""

from __future__ import annotations

import statistics
import time

import torch

from cmray.config.run import RunConfig

#: above this many parameters a measurement would itself take too long
LARGEST = 30_000_000


def seconds_per_step(run: RunConfig, shape: tuple[int, int, int], num_classes: int) -> float | None:
    """Seconds of one training step on one worker of this machine; None when it cannot be measured here.

    Forward and backward passes are timed, the optimizer and the loss are not, so the truth is a little above.
    """
    if run.resources.gpus_per_worker and not torch.cuda.is_available():
        return None
    device = torch.device("cuda" if run.resources.gpus_per_worker else "cpu")
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, int(run.resources.cpus_per_worker)))
    try:
        classes = num_classes if run.net.class_conditional else 0
        net = run.net.build(shape, classes).to(device)
        if sum(p.numel() for p in net.parameters()) > LARGEST:
            return None
        batch = run.train.batch_size // run.resources.workers
        x = torch.randn(batch, *shape, device=device)
        noise = torch.zeros(batch, device=device)
        label = torch.zeros(batch, dtype=torch.int64, device=device) if classes else None
        both, forward = [], []
        for _ in range(4):
            began = time.perf_counter()
            net(x, noise, label).square().mean().backward()
            _wait(device)
            both.append(time.perf_counter() - began)
            with torch.no_grad():
                began = time.perf_counter()
                net(x, noise, label)
                _wait(device)
                forward.append(time.perf_counter() - began)
        return statistics.median(both) + run.objective.frozen_forwards * statistics.median(forward)
    finally:
        torch.set_num_threads(threads)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
