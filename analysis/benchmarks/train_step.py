"""What a training step costs beyond the network evaluations that it cannot avoid, as ratios within one run.

    python analysis/benchmarks/train_step.py                      # every objective and variant: an hour on 2 cores
    python analysis/benchmarks/train_step.py --variants fp32 bf16 --objectives cd pd ect
    python analysis/benchmarks/train_step.py --batch 2 --size 16 --channels 8 --repeats 1     # does it run?

The peer of each step is the bare network: the same forwards, with and without gradients, and the same backward, on
tensors that are already there, with no data, loss, optimizer, EMA, gradient norm or log. Steps and their peers take
turns, so that both see the same machine; medians are compared. `-` in the table is a variant that an objective
refuses, with its reason below.
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
from pydantic import ValidationError

from cmray.config.run import RunConfig
from cmray.datasets import ImageDataset
from cmray.engine.batches import ResidentBatches
from cmray.engine.loop import _Loop, train
from cmray.engine.session import PlainSession, prepare_process
from cmray.engine.state import TrainState
from cmray.objectives import objectives as registry
from cmray.tracking.events import EventLog

NET = {"name": "ddpmpp", "multipliers": [1, 2, 4], "blocks": 1, "dropout": 0.0}
#: what an objective needs so that every step of the run is like the others
OPTIONS: dict[str, dict[str, Any]] = {
    "cd": {"solver": "heun"},
    "ect": {"stages": 1},
    "pd": {"num_sigmas": {"name": "halving", "start": 1}},
}
VARIANTS: dict[str, dict[str, Any]] = {
    "fp32": {},
    "bf16": {"precision": "bf16"},
    "compile": {"compile": True},
    "bf16+compile": {"precision": "bf16", "compile": True},
}


class Case:
    """One objective in one variant: its step through the engine's loop, and its bare peer."""

    def __init__(self, name: str, variant: str, args: argparse.Namespace, data: ImageDataset, folder: Path):
        self.name, self.variant = name, variant
        torch.compiler.reset()  # or what earlier cases compiled counts towards the limit after which nothing is
        session = PlainSession(torch.device(args.device))
        values = {
            "data": {"name": "digits"},
            "net": {**NET, "channels": args.channels, "attention_resolutions": [args.size // 2]},
            "noise": {"sigma_data": 0.5},
            "objective": {"name": name, **OPTIONS.get(name, {})},
            "train": {
                "steps": 10_000,
                "batch_size": args.batch,
                "ema": [0.999, 0.9999, 0.9999432],
                "log_every": 10,
                **VARIANTS[variant],
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
                # one goal from the target or the student, the others from the teacher, from whom pd has all
                taught = roles.teacher is not None and (i > 0 or objective.replaces_teacher)
                ask = roles.teacher if taught else roles.target or roles.student
                assert ask is not None
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


def table(rows: list[dict[str, Any]], objectives: list[str], variants: list[str]) -> str:
    """Markdown: milliseconds of a step, and its ratio to the bare network, by objective and variant."""
    cells = {(r["objective"], r["variant"]): f"{r['step_ms']:,.0f} ms ({r['step_over_bare']:.3f})" for r in rows}
    lines = [f"| objective | {' | '.join(variants)} |", f"| :--- |{' ---: |' * len(variants)}"]
    lines += [f"| {name} | {' | '.join(cells.get((name, v), '-') for v in variants)} |" for name in objectives]
    return "\n".join(lines)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = registry.names()
    parser.add_argument("--objectives", nargs="+", default=names, choices=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--size", type=int, default=32, help="pixels a side, a multiple of 4")
    parser.add_argument("--channels", type=int, default=44, help="width of the network; 44 is about 5 M parameters")
    parser.add_argument("--repeats", type=int, default=5, help="steps of each case that are timed")
    parser.add_argument("--warm-up", type=int, default=2, help="steps before, which compile")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    return parser.parse_args()


def main() -> None:
    args = arguments()
    prepare_process(args.threads)
    images = np.random.default_rng(0).integers(0, 256, (2048, 3, args.size, args.size), dtype=np.uint8)
    data = ImageDataset("noise", "train", "random pixels", images, None)
    rows, refused, parameters = [], {}, 0
    with tempfile.TemporaryDirectory() as folder:
        for name in args.objectives:
            for variant in args.variants:
                try:
                    case = Case(name, variant, args, data, Path(folder))
                except ValidationError as error:  # compile with a forward derivative
                    refused[f"{name} {variant}"] = error.errors()[0]["msg"].removeprefix("Value error, ")
                    continue
                parameters = case.state.student.params.numel()
                row = measure(case, args.repeats, args.warm_up)
                rows.append(row)
                print(
                    f"{name:14} {variant:13} step {row['step_ms']:8.1f} ms   bare network {row['bare_ms']:8.1f} ms   "
                    f"ratio {row['step_over_bare']:.3f}   outside {100 * row['outside_share']:.1f}%",
                    flush=True,
                )
    where = torch.cuda.get_device_name() if args.device == "cuda" else platform.processor() or platform.machine()
    facts = {
        "hardware": f"{where}, {args.threads} CPU threads",
        "torch": torch.__version__,
        "python": platform.python_version(),
        "parameters": parameters,
        "batch": args.batch,
        "size": args.size,
        "rows": rows,
        "refused": refused,
    }
    print(f"\n{table(rows, args.objectives, args.variants)}\n")
    for what, reason in refused.items():
        print(f"{what}: {reason}")
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
