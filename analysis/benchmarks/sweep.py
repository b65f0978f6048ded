"""What a sweep costs beside its training, and what a DDP run under Ray Train keeps of its speed.

    python analysis/benchmarks/sweep.py                        # about ten minutes on 2 cores
    python analysis/benchmarks/sweep.py --only startup
    python analysis/benchmarks/sweep.py --trials 2 --seconds 0.1 --steps 60 --repeats 1      # does it run?

Start-up: one-worker trials of about one second of training each, as a whole command from its start to its exit. cmray
is `cmray sweep` of an experiment file without evaluation; the peer is plain Ray Tune and Ray Train, a Tuner whose
trials start a TorchTrainer with one worker each, with the same loop on the same data. What is beyond the work is the
wall-clock less the seconds that the trials spent in their loops (each reports its own), divided by how many ran at
once.

Steady state: one run of two processes, `cmray train` (Ray Train) and the same command under torchrun, in turns. The
medians of the images per second that the runs log are compared, without the first fifth.

Run it on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

from cmray.cluster.connect import cores

PRESET = Path(__file__).resolve().parents[2] / "experiments" / "presets" / "digits.yaml"
CMRAY = [sys.executable, "-m", "cmray"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "cmray"]
#: the goals: seconds of a trial beyond its work, and the share of torchrun's images per second
BEYOND, KEPT = 1.0, 0.97


def run_file(folder: Path, name: str, train: dict[str, Any], **fields: Any) -> Path:
    """An experiment file: consistency training of the digits with the quickstart's network."""
    values = {
        "extends": str(PRESET),
        "name": name,
        "objective": {"name": "ct", "num_sigmas": 18, "mu": 0.9},
        "train": {"batch_size": 96, "optimizer": {"name": "radam", "lr": 2e-3}, **train},
        **fields,
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return path


def command(words: list[str], **environment: str) -> float:
    """Seconds of a command, from its start to its exit. Raises CalledProcessError."""
    began = time.monotonic()
    done = subprocess.run(words, capture_output=True, text=True, env={**os.environ, **environment}, check=False)
    if done.returncode:
        sys.exit(f"{shlex.join(words)} ended with {done.returncode}:\n{done.stderr[-3000:]}")
    return time.monotonic() - began


def step_seconds(folder: Path) -> float:
    """Seconds of a training step of the trials, alone on one thread."""
    file = run_file(folder, "calibration", {"steps": 300, "log_every": 20}, resources={"workers": 1})
    command([*CMRAY, "train", str(file), "--storage", str(folder / "storage"), "--tracking-uri", "none"])
    speeds = images_per_second(folder / "storage" / "calibration")
    return 96 / statistics.median(speeds)


def images_per_second(experiment: Path) -> list[float]:
    """What the one run of an experiment logged, without the first fifth."""
    (events,) = experiment.glob("*/events.jsonl")
    lines = [json.loads(line) for line in events.read_text().splitlines()]
    speeds = [line["metrics"]["images_per_second"] for line in lines if line["kind"] == "train"]
    return speeds[len(speeds) // 5 :]


def trained_seconds(experiment: Path) -> list[float]:
    """Seconds in the loop of each finished trial."""
    return [json.loads(file.read_text())["seconds"] for file in experiment.glob("*/result.json")]


# ---------------------------------------------------------------- start-up


def startup(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    steps = max(1, round(args.seconds / step_seconds(folder)))
    at_once = min(cores(), args.trials)
    rows: dict[str, list[dict[str, float]]] = {"cmray": [], "Tune + Train": []}
    for turn in range(args.startup_repeats):
        for who in rows:
            name = f"startup-{turn}-{'cmray' if who == 'cmray' else 'peer'}"
            panels = {"seeds": {"grid": {"seed": list(range(args.trials))}}}
            file = run_file(folder, name, {"steps": steps}, panels=panels)
            storage = folder / "storage"
            if who == "cmray":
                words = [*CMRAY, "sweep", str(file), "--storage", str(storage), "--tracking-uri", "none"]
            else:
                words = [sys.executable, __file__, "--peer", str(file), str(storage)]
            total = command(words)
            seconds = trained_seconds(storage / name)
            assert len(seconds) == args.trials, f"{who} trained {len(seconds)} of {args.trials} trials"
            beyond = (total - sum(seconds) / at_once) / args.trials
            rows[who].append({"total": total, "work": sum(seconds), "beyond": beyond})
            print(f"{who}: {total:.1f} s, {beyond:.2f} s a trial beyond the work", flush=True)
    middle = {who: {k: statistics.median(r[k] for r in found) for k in found[0]} for who, found in rows.items()}
    print(f"\nStart-up: {args.trials} one-worker trials of {steps} steps, {at_once} at a time")
    print("| | whole command | in the loops, all trials | beyond the work, per trial |")
    print("| :--- | ---: | ---: | ---: |")
    for who, row in middle.items():
        print(f"| {who} | {row['total']:.1f} s | {row['work']:.1f} s | {row['beyond']:.2f} s |")
    ours = middle["cmray"]["beyond"]
    print(f"goal: at most {BEYOND:g} s per trial: {'reached' if ours <= BEYOND else 'missed'} ({ours:.2f} s)\n")
    return {"steps": steps, "trials": args.trials, "at_once": at_once, "rows": rows}


def peer(file: Path, storage: Path) -> None:
    """The usual way: a Tuner whose trials start a TorchTrainer with one worker each."""
    import ray
    from ray import train, tune
    from ray.train.torch import TorchTrainer

    from cmray.cluster.connect import connected
    from cmray.cluster.stages import spec_of
    from cmray.cluster.work import TrainSession, run_trial
    from cmray.config.plan import plan_experiment
    from cmray.datasets import datasets
    from cmray.datasets.whole import load_whole

    plan = plan_experiment(file, [], storage)
    specs = [spec_of(trial) for trial in plan.trials]

    def worker(config: dict[str, Any]) -> None:
        spec = config["spec"]
        run_trial(spec, ray.get(config["data"][0]), TrainSession(Path(spec.folder), Path(spec.folder) / "room"))

    def trial(config: dict[str, Any], data: list[Any], scratch: str) -> None:
        trainer = TorchTrainer(
            worker,
            train_loop_config={"spec": specs[config["trial"]], "data": data},
            scaling_config=train.ScalingConfig(num_workers=1),
            run_config=train.RunConfig(name=f"trial-{config['trial']}", storage_path=scratch),
        )
        trainer.fit()

    with connected(None) as capacity, tempfile.TemporaryDirectory() as scratch:
        data = ray.put(load_whole(datasets.parse("digits")))
        function = tune.with_parameters(trial, data=[data], scratch=scratch)
        tuner = tune.Tuner(
            tune.with_resources(function, {"CPU": 0.01}),  # its worker takes the CPU
            param_space={"trial": tune.grid_search(list(range(len(specs))))},
            tune_config=tune.TuneConfig(max_concurrent_trials=int(capacity.free_cpus)),
            run_config=tune.RunConfig(name="peer", storage_path=scratch, verbose=0),
        )
        results = tuner.fit()
        if results.errors:
            raise results.errors[0]


# ---------------------------------------------------------------- steady state


def steady(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    found: dict[str, list[float]] = {"torchrun": [], "Ray Train": []}
    for turn in range(args.repeats):
        for who in found if turn % 2 == 0 else reversed(list(found)):
            name = f"steady-{turn}-{who.replace(' ', '-')}"
            train = {"steps": args.steps, "log_every": max(1, args.steps // 40), "checkpoint_every": args.steps}
            file = run_file(folder, name, train, resources={"workers": 2})
            storage = folder / "storage"
            words = ["train", str(file), "--storage", str(storage), "--tracking-uri", "none"]
            command([*(TORCHRUN if who == "torchrun" else CMRAY), *words], OMP_NUM_THREADS="1")
            found[who].append(statistics.median(images_per_second(storage / name)))
            print(f"{who}: {found[who][-1]:,.0f} images/s", flush=True)
    middle = {who: statistics.median(speeds) for who, speeds in found.items()}
    kept = statistics.median(r / t for r, t in zip(found["Ray Train"], found["torchrun"], strict=True))
    print(f"\nSteady state: one run of 2 processes, {args.steps} steps, median of {args.repeats} in turns")
    print("| | images/s | over torchrun |")
    print("| :--- | ---: | ---: |")
    print(f"| torchrun | {middle['torchrun']:,.0f} | 1.000 |")
    print(f"| Ray Train | {middle['Ray Train']:,.0f} | {kept:.3f} |")
    print(f"goal: at least {KEPT:g} of torchrun: {'reached' if kept >= KEPT else 'missed'} ({kept:.3f})\n")
    return {"steps": args.steps, "images_per_second": found, "kept": kept}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["startup", "steady"])
    parser.add_argument("--trials", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=1.0, help="training of each trial")
    parser.add_argument("--startup-repeats", type=int, default=1)
    parser.add_argument("--steps", type=int, default=1500, help="of the runs of two processes")
    parser.add_argument("--repeats", type=int, default=3, help="of the runs of two processes, each way")
    parser.add_argument("--peer", nargs=2, type=Path, metavar=("FILE", "STORAGE"), help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    args = arguments()
    if args.peer:
        peer(*args.peer)
        return
    versions = {name: importlib.metadata.version(name) for name in ("cmray", "torch", "ray")}
    hardware = f"{cores()} cores ({platform.machine()}), load {os.getloadavg()[0]:.1f}"
    print(f"{hardware}, Python {platform.python_version()}, {versions}\n", flush=True)
    facts: dict[str, Any] = {"hardware": hardware, "python": platform.python_version(), "versions": versions}
    with tempfile.TemporaryDirectory() as folder:
        if args.only != "steady":
            facts["startup"] = startup(args, Path(folder))
        if args.only != "startup":
            facts["steady"] = steady(args, Path(folder))
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
