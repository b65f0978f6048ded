"""What a training step costs beyond the network evaluations that it cannot avoid, as ratios within one run.

    python analysis/benchmarks/train_step.py                      # 5M parameters, 32 px, batch 64: minutes on 2 cores
    python analysis/benchmarks/train_step.py --variants fp32 bf16 compile bf16+compile --objectives edm cd ct ict

The peer of each step is the bare network: the same forwards, with and without gradients, and the same backward, on
tensors that are already there, with no data, loss, optimizer, EMA, gradient norm or log. Steps and their peers take
turns, so that both see the same machine; medians are compared.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cmray.config.run import RunConfig
from cmray.datasets import ImageDataset
from cmray.engine.batches import ResidentBatches
from cmray.engine.loop import _Loop, train
from cmray.engine.session import PlainSession, prepare_process
from cmray.engine.state import TrainState
from cmray.tracking.events import EventLog

#: about five million parameters
NET = {"name": "ddpmpp", "channels": 44, "multipliers": [1, 2, 4], "blocks": 1, "dropout": 0.0}
OBJECTIVES: dict[str, dict[str, Any]] = {
    "edm": {"name": "edm"},
    "cd": {"name": "cd", "solver": "heun"},
    "ct": {"name": "ct"},
    "ict": {"name": "ict"},
    "ect": {"name": "ect", "stages": 1},
    "pd": {"name": "pd", "num_sigmas": {"name": "halving", "start": 1}},
    "cd-continuous": {"name": "cd-continuous"},
    "ct-continuous": {"name": "ct-continuous"},
}


class Case:
    """One objective in one variant: its step through the engine's loop, and its bare peer."""

    def __init__(self, name: str, variant: str, args: argparse.Namespace, data: ImageDataset, folder: Path):
        self.name, self.variant = name, variant
        session = PlainSession(torch.device(args.device))
        values = {
            "data": {"name": "digits"},
            "net": NET,
            "noise": {"sigma_data": 0.5},
            "objective": OBJECTIVES[name],
            "train": {
                "steps": 10_000,
                "batch_size": args.batch,
                "ema": [0.999, 0.9999, 0.9999432],
                "precision": "bf16" if "bf16" in variant else "fp32",
                "compile": "compile" in variant,
                "log_every": 10,
            },
        }
        teacher = None
        probe = RunConfig.model_validate(values | {"teacher": {"checkpoint": "unused"}})
        if probe.objective.uses_teacher:
            teacher = _teacher(values, data, folder, session)
            values["teacher"] = {"checkpoint": str(teacher)}
        self.run = RunConfig.model_validate(values)
        self.state = TrainState(self.run, data.shape, 0, teacher, session)
        batches = ResidentBatches(data, args.batch, 0, session.device)
        log = EventLog(folder / f"events-{name}-{variant}.jsonl")
        self.loop = _Loop(self.run, self.state, batches, session, log)
        self.device = session.device
        self.x = torch.randn(args.batch, *data.shape, device=self.device)
        self.sigma = torch.full((args.batch,), 1.5, device=self.device)

    def step(self) -> None:
        self.loop.one_step()

    def bare(self) -> None:
        """The network evaluations of one step, and nothing else."""
        roles, objective = self.state.roles, self.run.objective
        with torch.no_grad():
            for i in range(objective.frozen_forwards):
                # one goal from the target or the student, the others from the teacher
                ask = roles.teacher if roles.teacher is not None and i > 0 else roles.target or roles.student
                ask(self.x, self.sigma, None)
        roles.student(self.x, self.sigma, None).sum().backward()

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def _teacher(values: dict[str, Any], data: ImageDataset, folder: Path, session: PlainSession) -> Path:
    trial = folder / "teacher"
    if not (trial / "result.json").is_file():
        one = {**values, "objective": {"name": "edm"}, "train": {"steps": 1, "batch_size": 2}}
        train(RunConfig.model_validate(one), data, trial, None, session)
    (checkpoint,) = (trial / "checkpoints").iterdir()
    return checkpoint


def seconds(call: Callable[[], None], wait: Callable[[], None]) -> float:
    wait()
    began = time.perf_counter()
    call()
    wait()
    return time.perf_counter() - began


def measure(case: Case, repeats: int, warm_up: int) -> dict[str, Any]:
    """Medians of step and peer, taken in turns."""
    for _ in range(warm_up):
        case.step()
        case.bare()
    pairs = [(seconds(case.step, case.wait), seconds(case.bare, case.wait)) for _ in range(repeats)]
    step, bare = (statistics.median(times) for times in zip(*pairs, strict=True))
    return {
        "objective": case.name,
        "variant": case.variant,
        "step_ms": step * 1e3,
        "bare_ms": bare * 1e3,
        "step_over_bare": statistics.median(s / b for s, b in pairs),
        "outside_share": 1 - statistics.median(b / s for s, b in pairs),
        "repeats": repeats,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objectives", nargs="+", default=["edm", "cd"], choices=list(OBJECTIVES))
    parser.add_argument("--variants", nargs="+", default=["fp32"], help="fp32, bf16, compile, bf16+compile")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--size", type=int, default=32, help="pixels a side")
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    prepare_process(args.threads)
    images = np.random.default_rng(0).integers(0, 256, (2048, 3, args.size, args.size), dtype=np.uint8)
    data = ImageDataset("noise", "train", "random pixels", images, None)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in args.objectives:
            for variant in args.variants:
                try:
                    case = Case(name, variant, args, data, Path(folder))
                except ValueError as error:  # such as compile with a forward derivative
                    print(f"{name} {variant}: {str(error).splitlines()[-1]}")
                    continue
                row = measure(case, args.repeats, warm_up=2)
                rows.append(row)
                print(
                    f"{name:14} {variant:13} step {row['step_ms']:8.1f} ms   bare network {row['bare_ms']:8.1f} ms   "
                    f"ratio {row['step_over_bare']:.3f}   outside {100 * row['outside_share']:.1f}%",
                    flush=True,
                )
        parameters = case.state.student.params.numel()
    where = torch.cuda.get_device_name() if args.device == "cuda" else platform.processor() or platform.machine()
    print(
        json.dumps(
            {
                "hardware": f"{where}, {args.threads} CPU threads",
                "torch": torch.__version__,
                "python": platform.python_version(),
                "parameters": parameters,
                "batch": args.batch,
                "size": args.size,
                "rows": rows,
            }
        )
    )


if __name__ == "__main__":
    main()
