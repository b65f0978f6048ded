"""What the quickstart costs: wall-clock and memory of the first sweep, time of the second, time of `cmray --help`.

    python analysis/benchmarks/quickstart.py [STORAGE]

Memory is the sum over the sweep's processes of their proportional set size (shared pages counted once), sampled every
five seconds (reading it takes the kernel a while). STORAGE is a folder to make and keep; by default a temporary one.
Run it on a machine that does nothing else.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[2]
CMRAY = [sys.executable, "-m", "cmray"]


def tree_memory(pid: int) -> tuple[int, int]:
    """(proportional set size in bytes, number of processes) of a process and all below it."""
    total = count = 0
    try:
        processes = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0, 0
    for process in processes:
        try:
            total += process.memory_full_info().pss
            count += 1
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return total, count


def watched(command: list[str]) -> tuple[float, int, int]:
    """(seconds, largest memory in bytes, most processes) of a command. Raises CalledProcessError."""
    peak = most = 0
    began = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    done = threading.Event()

    def watch() -> None:
        nonlocal peak, most
        while not done.wait(5.0):
            memory, count = tree_memory(process.pid)
            peak, most = max(peak, memory), max(most, count)

    watcher = threading.Thread(target=watch)
    watcher.start()
    code = process.wait()
    seconds = time.monotonic() - began
    done.set()
    watcher.join()
    if code:
        raise subprocess.CalledProcessError(code, command)
    return seconds, peak, most


def main() -> None:
    versions = {name: importlib.metadata.version(name) for name in ("cmray", "torch", "ray", "mlflow")}
    print(f"{os.cpu_count()} cores ({platform.machine()}), {psutil.virtual_memory().total / 2**30:.0f} GiB, {versions}")
    helped = []
    for _ in range(5):
        began = time.monotonic()
        subprocess.run([*CMRAY, "--help"], stdout=subprocess.DEVNULL, check=True)
        helped.append(time.monotonic() - began)
    print(f"cmray --help: {statistics.median(helped):.2f} s (median of 5)")
    with tempfile.TemporaryDirectory() as temporary:
        storage = sys.argv[1] if len(sys.argv) > 1 else temporary
        command = [*CMRAY, "sweep", str(ROOT / "experiments/quickstart.yaml"), "--storage", storage]
        seconds, peak, most = watched(command)
        print(f"first sweep: {seconds:.0f} s, at most {peak / 2**30:.2f} GiB in {most} processes")
        size = sum(f.stat().st_size for f in Path(storage).rglob("*") if f.is_file())
        print(f"results on disk: {size / 2**20:.0f} MiB")
        seconds, peak, most = watched(command)
        print(f"second sweep: {seconds:.1f} s, at most {peak / 2**30:.2f} GiB in {most} processes")


if __name__ == "__main__":
    main()
