"""How fast a run is, from a few measured steps of its network on this machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from cmray.config.run import RunConfig
from cmray.core.ema import EMA
from cmray.engine.flat import FlatModule
from cmray.engine.optimizers import make_optimizer

#: above this many parameters a measurement would itself take too long
LARGEST = 30_000_000


@dataclass(frozen=True)
class Speed:
    """Seconds of one training step on one worker, and of one network evaluation per image without gradients."""

    step: float
    image: float


def speed_of(run: RunConfig, shape: tuple[int, int, int], num_classes: int) -> Speed | None:
    """The speed of a run on this machine; None when it cannot be measured here.

    Forwards, backward, optimizer and EMA are timed; the loss and the exchange between workers are not, so the truth
    is a little slower.
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
        flat = FlatModule(net, trained=True)
        optimizer, ema = make_optimizer(run.train.optimizer, flat.params), EMA(flat.params, run.train.ema)
        batch = run.train.batch_size // run.resources.workers
        x = torch.randn(batch, *shape, device=device)
        noise = torch.zeros(batch, device=device)
        label = torch.zeros(batch, dtype=torch.int64, device=device) if classes else None

        def trained() -> None:
            net(x, noise, label).square().mean().backward()
            optimizer.step(1e-3)
            ema.update(flat.params)

        @torch.no_grad()
        def forward() -> None:
            net(x, noise, label)

        both, alone = [], []
        for _ in range(4):
            both.append(_timed(trained, device))
            alone.append(_timed(forward, device))
        once = statistics.median(alone)
        return Speed(statistics.median(both) + run.objective.frozen_forwards * once, once / batch)
    finally:
        torch.set_num_threads(threads)


def _timed(work: Callable[[], None], device: torch.device) -> float:
    began = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began
