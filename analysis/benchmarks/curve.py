"""What the curve costs a run that draws one: steps per second without it, measured at once, and in its thread.

    taskset -c 0 python analysis/benchmarks/curve.py               # one core, as a worker of a full machine has
    python analysis/benchmarks/curve.py --net unet                 # all cores
    python analysis/benchmarks/curve.py --steps 20 --every 10 --samples 64 --pairs 1      # does it run?

The runs are the quickstart's students: consistency distillation on scikit-learn's digits, 800 steps of 96 images, a
point of 2,048 samples every 100 steps, checkpoints included. The three take turns, so that all see the same machine,
each from the same weights; the clock runs until the last point is there. Medians of the ratios within a turn are shown,
of the time by the clock and of the processor time of all threads, which another job on the machine does not lengthen.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

import torch

from cmray.config.run import RunConfig
from cmray.datasets import ImageDataset, datasets
from cmray.datasets.whole import load_whole
from cmray.engine.batches import ResidentBatches
from cmray.engine.curve import Curve, CurvePoints
from cmray.engine.loop import _Loop, _steps, train
from cmray.engine.session import PlainSession, prepare_process
from cmray.engine.state import TrainState
from cmray.tracking.events import EventLog

NETS: dict[str, dict[str, Any]] = {
    "mlp": {"name": "mlp", "width": 192, "depth": 6},
    "unet": {"name": "unet", "channels": 16},
}
CPU = torch.device("cpu")


class AtOnce(CurvePoints):
    """Holds the trainer up while it measures."""

    def start(self, state: TrainState) -> None:
        super().start(state)
        self.wait()


KINDS: dict[str, type[CurvePoints] | None] = {"without": None, "at once": AtOnce, "beside": CurvePoints}


def configured(args: argparse.Namespace, teacher: Path | None) -> RunConfig:
    objective = {"name": "cd", "solver": "heun", "num_sigmas": 9, "mu": 0.9, "weight": "1/dt"}
    values = {
        "data": {"name": "digits"},
        "net": NETS[args.net],
        "noise": {"sigma_data": 0.75},
        "objective": objective if teacher else {"name": "edm"},
        "train": {
            "steps": args.steps if teacher else 1,
            "batch_size": 96,
            "optimizer": {"name": "radam", "lr": 2e-3},
            "ema": [0.99],
        },
    }
    if teacher:
        values["teacher"] = {"checkpoint": str(teacher)}
        values["curve"] = {"every": args.every, "num_samples": args.samples, "nfe": args.nfe}
    return RunConfig.model_validate(values)


def seconds(
    run: RunConfig, data: ImageDataset, teacher: Path, kind: type[CurvePoints] | None, folder: Path
) -> tuple[float, float]:
    """(by the clock, of all threads' processor time)."""
    session = PlainSession(CPU)
    state = TrainState(run, data.shape, 10, teacher, session)
    log = EventLog(folder / "events.jsonl")
    points = kind(Curve(state, data), log.append) if kind else None
    if points is None:
        run = run.model_copy(update={"curve": None})
    batches = ResidentBatches(data, run.train.batch_size, run.seed, CPU)
    with closing(points) if points else nullcontext():
        loop = _Loop(run, state, batches, session, log)
        began, spent = time.perf_counter(), time.process_time()
        _steps(loop, points, folder / "checkpoints")
        return time.perf_counter() - began, time.process_time() - spent


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--net", choices=list(NETS), default="mlp")
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--every", type=int, default=100)
    parser.add_argument("--samples", type=int, default=2_048)
    parser.add_argument("--nfe", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--pairs", type=int, default=5, help="turns of the three")
    parser.add_argument("--threads", type=int, default=1, help="of torch, as resources.cpus_per_worker")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    prepare_process(args.threads)
    data = load_whole(datasets.parse("digits"))
    turns: list[dict[str, tuple[float, float]]] = []
    with tempfile.TemporaryDirectory() as place:
        train(configured(args, None), data, Path(place, "teacher"), None, PlainSession(CPU))
        (teacher,) = Path(place, "teacher", "checkpoints").iterdir()
        run = configured(args, teacher)
        for turn in range(args.pairs):
            order = list(KINDS)[:: 1 if turn % 2 else -1]
            found = {}
            for kind in order:
                folder = Path(place, f"{turn}-{kind}")
                folder.mkdir()
                found[kind] = seconds(run, data, teacher, KINDS[kind], folder)
            turns.append(found)
            print("   ".join(f"{k} {found[k][0]:6.2f} s (cpu {found[k][1]:6.2f})" for k in KINDS), flush=True)
    ratios = {
        f"{a} / {b}{how}": statistics.median(t[a][i] / t[b][i] for t in turns)
        for i, how in enumerate(("", ", processor time"))
        for a, b in (("at once", "without"), ("beside", "without"), ("beside", "at once"))
    }
    facts = {
        "cores": len(os.sched_getaffinity(0)),
        "threads": args.threads,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "net": args.net,
        "points": -(-args.steps // args.every),
        "turns": turns,
        "steps_per_second": {k: args.steps / statistics.median(t[k][0] for t in turns) for k in KINDS},
        **ratios,
    }
    print("\n" + "\n".join(f"{name}: {ratio:.3f}" for name, ratio in ratios.items()))
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
