"""What cmray takes beside the work: imports, first lines, a driver that waits, log lines, the size of a trial's folder.

    python analysis/benchmarks/footprint.py                # about two minutes
    python analysis/benchmarks/footprint.py --watch 10     # does it run?

A sweep of two one-worker trials that train for longer than they are watched: consistency training of the digits, a
curve point every 2,000 steps. Times are from the start of the command. The driver's seconds of a core and its lines are
of the watched minute; memory is the proportional set size (shared pages counted once) at its end. Then Ctrl-C. The
folder is that of a whole trial of the quickstart's length, with its curve.
Run it on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import yaml
from quickstart import tree_memory

PRESET = Path(__file__).resolve().parents[2] / "experiments" / "presets" / "digits.yaml"
CMRAY = [sys.executable, "-m", "cmray"]


def cpu_seconds(words: list[str], times: int = 5) -> float:
    """Median seconds of a core that a command takes."""
    found = []
    for _ in range(times):
        before = sum(os.times()[2:4])
        subprocess.run(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
        found.append(sum(os.times()[2:4]) - before)
    return statistics.median(found)


def file_of(folder: Path, name: str, steps: int, every: int) -> Path:
    values: dict[str, Any] = {
        "extends": str(PRESET),
        "name": name,
        "objective": {"name": "ct", "num_sigmas": 18, "mu": 0.9},
        "train": {"steps": steps, "batch_size": 96, "optimizer": {"name": "radam", "lr": 2e-3}},
        "curve": {"every": every, "metric": "fd/digits", "num_samples": 2048, "nfe": [1]},
        "panels": {"seeds": {"grid": {"seed": [0, 1]}}},
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return path


def sweep(folder: Path, file: Path, log: Path) -> subprocess.Popen[bytes]:
    words = [*CMRAY, "sweep", str(file), "--storage", str(folder / "storage")]
    return subprocess.Popen(words, stdout=log.open("wb"), stderr=subprocess.STDOUT, start_new_session=True)


def wait_for(process: subprocess.Popen[bytes], began: float, found: Any) -> float:
    """Seconds from `began` until `found()`."""
    while not found():
        if process.poll() is not None:
            sys.exit("the sweep ended early")
        time.sleep(0.02)
    return time.monotonic() - began


def driver(folder: Path, watch: float) -> None:
    log = folder / "log.txt"
    began = time.monotonic()
    process = sweep(folder, file_of(folder, "footprint", 1_000_000, 2_000), log)
    try:
        first = wait_for(process, began, lambda: log.stat().st_size > 0)
        plan = wait_for(process, began, lambda: b"Plan:" in log.read_bytes())
        trained = wait_for(process, began, lambda: list(folder.glob("storage/footprint/*/events.jsonl")))
        print(
            f"first line {first:.2f} s, plan {plan:.2f} s, first training step logged {trained:.1f} s after the start"
        )
        own = psutil.Process(process.pid)
        lines, used, at = log.read_bytes().count(b"\n"), sum(own.cpu_times()[:2]), time.monotonic()
        time.sleep(watch)
        minutes = (time.monotonic() - at) / 60
        told = (log.read_bytes().count(b"\n") - lines) / minutes
        busy = (sum(own.cpu_times()[:2]) - used) / minutes
        memory, count = tree_memory(process.pid)
        alone = own.memory_full_info().pss
        print(f"while two trials train: {told:.0f} lines and {busy:.1f} s of the driver's core a minute")
        print(f"memory: driver {alone / 2**20:,.0f} MiB, all {count} processes {memory / 2**20:,.0f} MiB")
    finally:
        os.killpg(process.pid, signal.SIGINT)
        process.wait(120)


def trial(folder: Path) -> None:
    process = sweep(folder, file_of(folder, "whole", 1_000, 100), folder / "whole.txt")
    if process.wait(600):
        sys.exit((folder / "whole.txt").read_text())
    for place in sorted((folder / "storage/whole").glob("*/result.json"))[:1]:
        sizes = {p.relative_to(place.parent): p.stat().st_size for p in place.parent.rglob("*") if p.is_file()}
        saved = sum(size for path, size in sizes.items() if path.parts[0] == "checkpoints")
        print(
            f"a finished trial: {len(sizes)} files, {sum(sizes.values()) / 2**20:.1f} MiB, "
            f"{saved / 2**20:.1f} of them its checkpoint"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--watch", type=float, default=60.0, help="seconds")
    args = parser.parse_args()
    versions = {name: importlib.metadata.version(name) for name in ("cmray", "torch", "ray", "mlflow")}
    print(f"{os.cpu_count()} cores ({platform.machine()}), {psutil.virtual_memory().total / 2**30:.0f} GiB, {versions}")
    python = [sys.executable, "-c"]
    nowhere = ("--storage", "no-such-folder", "--tracking-uri", "none")
    bare = cpu_seconds([*python, ""])
    for what, words in {
        "import cmray": [*python, "import cmray"],
        "import torch": [*python, "import torch"],
        "cmray --help": [*CMRAY, "--help"],
        "cmray sweep --dry-run": [*CMRAY, "sweep", str(PRESET.parents[1] / "quickstart.yaml"), "--dry-run", *nowhere],
    }.items():
        print(f"{what}: {cpu_seconds(words) - bare:.2f} s of a core beyond Python's own {bare:.2f}")
    with tempfile.TemporaryDirectory() as temporary:
        driver(Path(temporary), args.watch)
        trial(Path(temporary))


if __name__ == "__main__":
    main()
