"""How fast images come to a worker, what they take in memory, and how long training waits for them.

    python analysis/benchmarks/data.py --source cifar10-parquet          # everything, about ten minutes on 2 cores
    python analysis/benchmarks/data.py --source cifar10-parquet --only prepare peers resident
    python analysis/benchmarks/data.py --digits --seconds 0.2            # a small run that needs no files

The source is a folder of CIFAR-10 in Parquet as Hugging Face lays it out. In one run it is prepared, fed by torch's
DataLoader over an image folder, by Hugging Face `datasets` and by plain Ray Data, and then by each of cmray's feeds:
shuffled batches, decoded, float32 in [-1, 1]. Feeds of Ray run in an actor, as a trial's worker does, with one thread
of torch, and are timed over whole epochs after the first; the others run in this process, and are timed after a
warm-up. Files are in the page cache. Run it on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

os.environ.update(RAY_USAGE_STATS_ENABLED="0", RAY_DATA_DISABLE_PROGRESS_BARS="1", HF_HUB_OFFLINE="1")

import data_peers as peers
import psutil
from data_bench import Bench
from data_feeds import over_time, rates, worker_sizes
from data_growth import resident_memory, stream_sizes, stream_workers, waiting

from cmray.cluster.connect import connected, cores
from cmray.cluster.data import resident_dataset
from cmray.cluster.prepare import _RayMapper
from cmray.core.errors import CmrayError
from cmray.datasets.mapped import map_shards
from cmray.engine.stream import read_here

USUAL = Path(__file__).resolve().parents[3] / "shared/data/cifar10-jpeg"
PARTS = ("prepare", "peers", "resident", "mmap", "stream", "memory", "workers", "sizes", "waiting")


def prepare(bench: Bench) -> None:
    """Decodes the source into shards, in this process: every other part needs them."""
    began = time.perf_counter()
    bench.manifest = bench.preparation(bench.folder / "shards").run()
    took = time.perf_counter() - began
    bench.prepared = [["one process", f"{took:.1f} s", f"{bench.manifest.count / took:,.0f}"]]
    bench.say(f"prepared {bench.manifest.count:,} images in {took:.1f} s")


def prepare_with_ray(bench: Bench) -> None:
    began = time.perf_counter()
    preparation = bench.preparation(bench.folder / "again")
    with connected(None, 2**28) as capacity:
        preparation.run(_RayMapper(int(capacity.cpus)))
    took = time.perf_counter() - began
    count = bench.manifest.count
    with_ray = [f"Ray on {cores()} cores, its start and end included", f"{took:.1f} s", f"{count / took:,.0f}"]
    bench.tables.append(("Preparing", ["decoded by", "time", "images/s"], [*bench.prepared, with_ray]))
    bench.say(f"prepared with Ray in {took:.1f} s")


def peers_here(bench: Bench) -> None:
    """The peers that know no Ray. They fork, so they come before Ray is started in this process."""
    args, (channels, _, _) = bench.args, bench.manifest.shape
    pictures = bench.folder / "pictures"
    peers.write_image_folder(bench.files, pictures)
    tries: dict[str, dict[str, Callable[[], Iterator[int]]]] = {
        "torch DataLoader, image folder": {
            f"{n} workers": partial(peers.image_folder, pictures, channels, n, args.batch) for n in (0, 2)
        },
        "Hugging Face datasets": {
            f"{way}, {n} workers": partial(peers.hugging_face, bench.files, bench.folder / "hf", way, n, args.batch)
            for way, n in (("iter", 0), ("torch", 0), ("torch", 2), ("transform", 0), ("transform", 2))
        },
    }
    for name, ways in tries.items():
        found: dict[str, float] = {}
        for way, sizes in ways.items():
            try:
                found[way] = over_time(sizes(), args.seconds)
            except ImportError:
                bench.notes.append(f"{name}: left out, it is not installed; {peers.INSTALL}")
                bench.say(bench.notes[-1])
                break
            bench.say(f"{name}, {way}: {found[way]:,.0f} images/s")
        if found:
            best = max(found, key=lambda way: found[way])
            bench.peers[f"{name} (best: {best})"] = found[best]


def peers_of_ray(bench: Bench) -> None:
    shards = [str(bench.folder / "shards" / shard.file) for shard in bench.manifest.shards]
    names = {
        "stream": "Ray Data, streaming",
        "materialize": "Ray Data, .materialize()",
        "unshuffled": "Ray Data, .materialize(), not shuffled",
    }
    with connected(None, 4 * bench.manifest.nbytes):
        for kind, name in names.items():
            sizes = partial(peers.ray_data, shards, bench.args.batch, kind)
            bench.peers[name] = rates([sizes], bench.manifest.count, bench.args.seconds)[0]
            bench.say(f"{name}: {bench.peers[name]:,.0f} images/s")


def feeds(bench: Bench) -> None:
    """cmray's own, one worker, flipped and not."""
    import ray

    chosen: dict[str, Callable[[], Any]] = {}
    if "resident" in bench.args.only:
        chosen["resident"] = lambda: resident_dataset(bench.place, bench.manifest)
    if "mmap" in bench.args.only:
        chosen["mmap"] = lambda: map_shards(bench.place, bench.manifest, bench.folder / "mapped")
    if "stream" in bench.args.only:
        chosen["stream through Ray"] = bench.streamed
        chosen["stream, read by the worker itself"] = partial(bench.streamed, read_here)
    with connected(None, bench.manifest.nbytes):
        for name, data in chosen.items():
            box = [ray.put(data())]
            bench.feeds[name] = [
                rates([partial(worker_sizes, bench.run(flip=flip), box)], bench.manifest.count, bench.args.seconds)[0]
                for flip in (False, True)
            ]
            plain, flipped = bench.feeds[name]
            bench.say(f"cmray {name}: {plain:,.0f} images/s, flipped {flipped:,.0f}")


def compare(bench: Bench) -> None:
    """The table of feeds, and what it says of the targets."""
    streaming = {n: r for n, r in bench.peers.items() if ".materialize()" not in n}
    best, of_all = max(streaming.values(), default=None), max(bench.peers.values(), default=None)
    rows = []
    for name, rate in bench.peers.items():
        rows.append([name, f"{rate:,.0f}", "-", *(_ratio(rate, peer) for peer in (best, of_all))])
    for name, (plain, flipped) in bench.feeds.items():
        ratios = (_ratio(plain, peer) for peer in (best, of_all))
        rows.append([f"**cmray, {name}**", f"{plain:,.0f}", f"{flipped:,.0f}", *ratios])
    if rows:
        columns = ["feed", "images/s", "flipped", "over the best that streams", "over the best of all"]
        bench.tables.append((f"One worker, batch {bench.args.batch}", columns, rows))
    if "resident" in bench.feeds:
        resident, flipped = bench.feeds["resident"]
        bench.target("resident, images/s", resident, "{:,.0f}", 300_000, True)
        bench.target("resident and flipped, images/s", flipped, "{:,.0f}", 300_000, True)
        if best and of_all:
            bench.target("resident over the best peer that streams", resident / best, "{:.1f}x", 20, True)
            bench.target("resident over the best peer of all", resident / of_all, "{:.1f}x", 20, True)
    plain = bench.peers.get("Ray Data, streaming")
    if "stream through Ray" in bench.feeds and plain:
        ratio = bench.feeds["stream through Ray"][0] / plain
        bench.target("streaming over plain Ray Data streaming", ratio, "{:.1f}x", 2, True)


def _ratio(rate: float, peer: float | None) -> str:
    return "-" if peer is None else f"{rate / peer:.2f}x"


def markdown(columns: list[str], rows: list[list[str]]) -> str:
    lines = [f"| {' | '.join(columns)} |", f"| :--- |{' ---: |' * (len(columns) - 1)}"]
    return "\n".join(lines + [f"| {' | '.join(row)} |" for row in rows])


def facts() -> str:
    """Machine and versions."""
    models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    name = models[0].split(":", 1)[1].strip() if models else platform.machine()
    versions = [f"Python {platform.python_version()}"]
    for package in ("torch", "ray", "pyarrow", "datasets"):
        try:
            versions.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            versions.append(f"{package} absent")
    return f"{cores()} cores ({name}), {psutil.virtual_memory().total / 2**30:.0f} GiB, {', '.join(versions)}"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    usual = USUAL if USUAL.is_dir() else None
    parser.add_argument("--source", type=Path, default=usual, help="folder of CIFAR-10 in Parquet files")
    parser.add_argument("--digits", action="store_true", help="scikit-learn's digits instead, to see that it runs")
    parser.add_argument("--only", nargs="+", default=list(PARTS), choices=PARTS, metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--seconds", type=float, default=5.0, help="how long each feed is timed, at least")
    parser.add_argument("--batch", type=int, default=256)
    return parser.parse_args()


def main() -> None:
    args = arguments()
    if not args.digits and (args.source is None or not args.source.is_dir()):
        found = "is not given" if args.source is None else f"{args.source} is no folder"
        sys.exit(f"--source {found}; give a folder of CIFAR-10 in Parquet (the Hugging Face layout), or --digits")
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["HF_HOME"] = folder
        try:
            bench = Bench(args, Path(folder))
            prepare(bench)
            if "peers" in args.only:
                peers_here(bench)
            if "prepare" in args.only:
                prepare_with_ray(bench)
            if "peers" in args.only:
                peers_of_ray(bench)
            if {"resident", "mmap", "stream"} & set(args.only):
                feeds(bench)
            compare(bench)
            later = {"memory": resident_memory, "workers": stream_workers, "sizes": stream_sizes, "waiting": waiting}
            for name, part in later.items():
                if name in args.only:
                    part(bench)
        except CmrayError as error:
            sys.exit(str(error))
    print(f"\n{facts()}; {time.perf_counter() - began:.0f} s")
    for title, columns, rows in bench.tables:
        print(f"\n{title}\n\n{markdown(columns, rows)}")
    if bench.targets:
        print(f"\nTargets\n\n{markdown(['what', 'found', 'target', 'met'], bench.targets)}")
    for note in bench.notes:
        print(f"\n{note}")


if __name__ == "__main__":
    main()
