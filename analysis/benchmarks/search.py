"""What a search of sampling times costs: the reference's, in one process, against a section search on two Ray actors.

    python analysis/benchmarks/search.py                     # trains a model for a minute, then searches four times
    python analysis/benchmarks/search.py --samples 2048 --steps 20 --repeats 1     # does it run?

The model is consistency training on scikit-learn's digits with the quickstart's network. Every search looks for the
times of --nfe steps on the same grid, with the same seeds, from nothing. Mode reference asks what the paper's released
code asks (each point once) and samples whole schedules; section goes on from kept samples of the times it holds fixed.
Processes are started and have loaded the network and the extractor before the clock runs. Searches take turns; the
medians are compared. Network evaluations are images that went through the network, counted where it is called.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import ray
import torch
import yaml

from cmray.cluster.connect import connected
from cmray.cluster.evaluate import EvaluatorPool
from cmray.config.data_facts import facts_of
from cmray.config.experiment import SearchConfig
from cmray.config.run import RunConfig
from cmray.core.protocol import BLOCK
from cmray.datasets import datasets
from cmray.datasets.whole import load_whole, write_shards
from cmray.engine.evaluator import InlinePool, Pool
from cmray.engine.loop import train
from cmray.engine.results import Reference, Subject, reference_for, subject
from cmray.engine.searching import search_times
from cmray.engine.session import PlainSession, prepare_process
from cmray.tracking.records import Search

FASTER, FEWER = 2.0, 0.45
PRESET = Path(__file__).resolve().parents[2] / "experiments" / "presets" / "digits.yaml"


def trained(storage: Path, steps: int, num_sigmas: int) -> Subject:
    preset = yaml.safe_load(PRESET.read_text())
    values = {
        **preset,
        "noise": {**preset["noise"], "sigma_data": 0.75},
        "objective": {"name": "ct", "num_sigmas": num_sigmas, "mu": 0.9},
        "train": {"steps": steps, "batch_size": 128, "optimizer": {"name": "radam", "lr": 2e-3}, "ema": [0.99]},
    }
    run = RunConfig.model_validate(values)
    data = load_whole(datasets.parse("digits"))
    write_shards(data, storage / "datasets" / "digits", 2)
    train(run, data, storage / "trial", None, PlainSession(torch.device("cpu")))
    (checkpoint,) = (storage / "trial" / "checkpoints").glob("step-*")
    return subject(storage / "trial", checkpoint)


def searched(who: Subject, mode: str, args: argparse.Namespace, reference: Reference, pool: Pool) -> Search:
    """From nothing: what an earlier search left is removed."""
    shutil.rmtree(who.folder / "searches", ignore_errors=True)
    config = SearchConfig.model_validate({"mode": mode, "num_samples": args.samples, "nfe": (args.nfe,)})
    return search_times(who, config, args.nfe, reference, pool, BLOCK)


def warm(who: Subject, reference: Reference, pool: Pool) -> None:
    """Every process of the pool has loaded the network and the extractor."""
    config = SearchConfig.model_validate({"mode": "exhaustive", "num_samples": 2, "nfe": (2,)})
    shutil.rmtree(who.folder / "searches", ignore_errors=True)
    search_times(who, config, 2, reference, pool, BLOCK)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--nfe", type=int, default=4)
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--num-sigmas", type=int, default=40)
    parser.add_argument("--steps", type=int, default=800, help="of training")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    prepare_process(1)
    found: dict[str, list[tuple[float, Search]]] = {}
    with tempfile.TemporaryDirectory() as folder, connected(None):
        storage = Path(folder)
        who = trained(storage, args.steps, args.num_sigmas)
        reference = reference_for(facts_of(who.run.data, storage), "digits", storage)
        actors = EvaluatorPool(2)
        places: dict[str, tuple[str, Pool]] = {
            "reference, one process": ("reference", InlinePool(torch.device("cpu"))),
            "section, one process": ("section", InlinePool(torch.device("cpu"))),
            "section, 2 actors": ("section", actors),
        }
        for _, pool in places.values():
            warm(who, reference, pool)
        for _ in range(args.repeats):
            for name, (mode, pool) in places.items():
                began = time.perf_counter()
                result = searched(who, mode, args, reference, pool)
                found.setdefault(name, []).append((time.perf_counter() - began, result))
        actors.close()
    report(found, args)


def report(found: dict[str, list[tuple[float, Search]]], args: argparse.Namespace) -> None:
    load = ", ".join(f"{x:.1f}" for x in os.getloadavg())
    print(f"{platform.processor() or platform.machine()}, {len(os.sched_getaffinity(0))} cores, load {load}")
    versions = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "ray": ray.__version__,
    }
    print(", ".join(f"{name} {version}" for name, version in versions.items()))
    print(f"{args.nfe} times on a grid of {args.num_sigmas}, {args.samples:,} samples, median of {args.repeats}\n")
    print("| search | seconds | network evaluations a sample | candidates | times | fd/digits while searching |")
    print("|---|---|---|---|---|---|")
    rows = {}
    for name, runs in found.items():
        seconds, (_, last) = statistics.median(s for s, _ in runs), runs[-1]
        assert last.nfe_spent is not None
        rows[name] = (seconds, last.nfe_spent)
        times = " ".join(f"{t:.3g}" for t in last.times)
        print(
            f"| {name} | {seconds:.1f} | {last.nfe_spent / args.samples:.1f} | {len(last.points)} | {times} "
            f"| {last.value:.3f} |"
        )
    (slow, many), (fast, few) = rows["reference, one process"], rows["section, 2 actors"]
    print()
    faster, fewer = slow / fast, few / many
    print(f"wall-clock: {faster:.2f}x, target {FASTER}x or more: {'met' if faster >= FASTER else 'NOT met'}")
    print(f"network evaluations: {fewer:.3f}x, target {FEWER}x or less: {'met' if fewer <= FEWER else 'NOT met'}")
    print(json.dumps({"seconds": {n: [s for s, _ in r] for n, r in found.items()}, **versions}))


if __name__ == "__main__":
    main()
