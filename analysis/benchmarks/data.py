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
import io
import os
import platform
import statistics
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
import pyarrow as pa
import pyarrow.parquet as pq
from data_feeds import over_time, rates, start_feeds, stop_feeds, trained, wait_for_images, worker_sizes
from data_memory import Memory, memory, watched_for, watching
from PIL import Image

from cmray.cluster.connect import connected, cores
from cmray.cluster.data import resident_dataset, stream_units
from cmray.cluster.prepare import prepare as prepare_on_ray
from cmray.config.run import RunConfig
from cmray.core.errors import CmrayError
from cmray.datasets import datasets
from cmray.datasets.images import ImageRule
from cmray.datasets.location import Location
from cmray.datasets.manifest import Manifest
from cmray.datasets.mapped import map_shards
from cmray.datasets.parquet import parquet_files
from cmray.datasets.prepare import Preparation
from cmray.datasets.shards import default_window
from cmray.engine.stream import ReadUnits, StreamedDataset, read_here

USUAL = Path(__file__).resolve().parents[3] / "shared/data/cifar10-jpeg"
MIB = 2**20
PARTS = ("prepare", "peers", "resident", "mmap", "stream", "memory", "workers", "sizes", "waiting")
Table = tuple[str, list[str], list[list[str]]]


class Bench:
    """What was measured so far."""

    def __init__(self, args: argparse.Namespace, folder: Path):
        self.args, self.folder = args, folder
        self.tables: list[Table] = []
        self.notes: list[str] = []
        self.targets: list[list[str]] = []
        #: images per second by feed: peers and cmray's
        self.peers: dict[str, float] = {}
        self.feeds: dict[str, list[float]] = {}
        source = _digits(folder / "source") if args.digits else args.source
        self.config = datasets.parse({"name": "parquet" if args.digits else "cifar10", "source": source})
        self.files, _ = parquet_files(source, None if args.digits else "train")
        self.place = Location(folder / "shards")
        self.manifest: Manifest
        self.prepared: list[list[str]] = []

    def say(self, text: str) -> None:
        print(text, flush=True)

    def preparation(self, out: Path) -> Preparation:
        rule = ImageRule.model_validate({**self.config.usual_rule, "encoding": "raw"})
        return Preparation(self.config.open(), rule, out, None)

    def run(self, *, world: int = 1, flip: bool = False, **train: Any) -> RunConfig:
        side = self.manifest.shape[1]
        multipliers = [1, 2, 4] if side >= 32 else [1, 2]
        return RunConfig.model_validate(
            {
                "data": {"path": str(self.place), "flip": flip},
                "net": {
                    "name": "ddpmpp",
                    "channels": 44 if side >= 32 else 16,
                    "multipliers": multipliers,
                    "blocks": 1,
                    "dropout": 0.0,
                    "attention_resolutions": [side // 2],
                },
                "noise": {"sigma_data": 0.5},
                "objective": {"name": "edm"},
                "train": {"steps": 1, "batch_size": self.args.batch * world, **train},
                "resources": {"workers": world},
            }
        )

    def streamed(self, read: ReadUnits = stream_units, times: int = 1) -> StreamedDataset:
        """The shards, as if there were `times` as many."""
        m = self.manifest
        larger = m.model_copy(update={"count": m.count * times, "shards": m.shards * times})
        return StreamedDataset(self.place, larger, read)

    def target(self, what: str, found: float, form: str, bound: float, at_least: bool) -> None:
        met = found >= bound if at_least else found <= bound
        wanted = f"{'at least' if at_least else 'at most'} {form.format(bound)}"
        self.targets.append([what, form.format(found), wanted, "yes" if met else "no"])


def _digits(folder: Path) -> Path:
    """scikit-learn's digits as Parquet files in the Hugging Face layout."""
    folder.mkdir()
    digits: Any = datasets.parse("digits").open()
    rows = []
    for pixels, label in zip(digits.images[:, 0], digits.labels.tolist(), strict=True):
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        rows.append({"image": {"bytes": file.getvalue(), "path": None}, "label": label})
    half = len(rows) // 2
    for i, part in enumerate((rows[:half], rows[half:])):
        pq.write_table(pa.Table.from_pylist(part), folder / f"train-{i:05d}-of-00002.parquet")
    return folder


def prepare(bench: Bench) -> None:
    """Decodes the source into shards, in this process: every other part needs them."""
    began = time.perf_counter()
    bench.manifest = bench.preparation(bench.folder / "shards").run()
    took = time.perf_counter() - began
    bench.prepared = [["one process", f"{took:.1f} s", f"{bench.manifest.count / took:,.0f}"]]
    bench.say(f"prepared {bench.manifest.count:,} images in {took:.1f} s")


def prepare_with_ray(bench: Bench) -> None:
    began = time.perf_counter()
    first: list[float] = []
    prepare_on_ray(
        bench.preparation(bench.folder / "again"), None, lambda done: first.append(time.perf_counter()), parallel=True
    )
    took = time.perf_counter() - began
    count = bench.manifest.count
    rows = [*bench.prepared, [f"Ray on {cores()} cores, with its start", f"{took:.1f} s", f"{count / took:,.0f}"]]
    bench.tables.append(("Preparing", ["decoded by", "time", "images/s"], rows))
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


def resident_memory(bench: Bench) -> None:
    """What loading a resident dataset adds to a session in which two workers have loaded another, tiny one."""
    import ray

    tiny = bench.folder / "tiny"
    Preparation(datasets.parse("digits").open(), ImageRule.model_validate({}), tiny, None).run()
    raw, manifest, sizes = bench.manifest.nbytes, bench.manifest, partial(worker_sizes, bench.run())
    with connected(None, raw):
        fresh = memory()
        box = [ray.put(resident_dataset(tiny))]
        warm = start_feeds([partial(sizes, box)] * 2, 1797, 1)
        wait_for_images(warm, 10_000)
        time.sleep(bench.args.seconds / 2)
        before = watched_for(bench.args.seconds / 2).typical
        with watching(0.05) as loading:
            box = [ray.put(resident_dataset(bench.place, manifest))]
        ray.get([feed.stop.remote() for feed in warm])
        ray.get([feed.start.remote(partial(sizes, box), manifest.count) for feed in warm])
        wait_for_images(warm, 2 * manifest.count)
        time.sleep(bench.args.seconds / 2)
        steady = watched_for(bench.args.seconds / 2).typical
        stop_feeds(warm)
    rows = [
        _memory_row("peak while loading", loading.peak - before, raw),
        _memory_row("steady, both workers at it", steady - before, raw),
        _memory_row("the same, over a fresh session", steady - fresh, raw),
    ]
    columns = ["moment", "heaps + store", "over raw", "heaps", "object store", "mapped of it (PSS)", "sum of all PSS"]
    bench.tables.append((f"Memory of a resident dataset of {raw / MIB:,.1f} MiB, growth", columns, rows))
    bench.target("resident memory over raw bytes", (steady - before).unique / raw, "{:.2f}x", 1.1, False)
    bench.say(f"resident memory: {(steady - before).unique / raw:.2f}x of the raw bytes")


def _memory_row(name: str, m: Memory, raw: int) -> list[str]:
    shown = (m.anonymous, m.store, m.mapped, m.pss)
    return [name, _mib(m.unique), f"{m.unique / raw:.2f}x", *map(_mib, shown)]


def _mib(size: int) -> str:
    return f"{size / MIB:,.0f} MiB"


def stream_workers(bench: Bench) -> None:
    """Workers of one run that stream at once, each its share."""
    import ray

    rows = []
    with connected(None, bench.manifest.nbytes) as capacity:
        box = [ray.put(bench.streamed())]
        for world in (1, 2, 4):
            run = bench.run(world=world)
            sizes = [partial(worker_sizes, run, box, rank) for rank in range(world)]
            found = rates(sizes, bench.manifest.count / world, bench.args.seconds, min(1.0, capacity.free_cpus / world))
            rows.append([str(world), f"{statistics.mean(found):,.0f}", f"{sum(found):,.0f}"])
            bench.say(f"{world} stream workers: {sum(found):,.0f} images/s together")
    bench.tables.append((f"Workers that stream at once on {cores()} cores", ["workers", "each", "together"], rows))


def stream_sizes(bench: Bench) -> None:
    """Memory and speed of one stream by the size of the dataset, each in a session of its own."""
    import ray

    rows, found = [], []
    for times in (1, 4, 16):
        data = bench.streamed(times=times)
        with connected(None, bench.manifest.nbytes):
            box = [ray.put(data)]
            fed = start_feeds([partial(worker_sizes, bench.run(), box)], default_window(data.shape, len(data)), 1)
            wait_for_images(fed, 2 * bench.manifest.count)
            ((first, *_),) = ray.get([fed[0].state.remote()])
            began = time.perf_counter()
            seen = watched_for(max(bench.args.seconds, 1.0))
            ((last, *_),) = ray.get([fed[0].state.remote()])
            rate = (last - first) / (time.perf_counter() - began)
            stop_feeds(fed)
        raw, most = data.manifest.nbytes, seen.peak
        found.append(most.unique)
        sizes = (raw, most.unique, most.anonymous, most.store, max(m.pss for m in seen.seen))
        rows.append([f"{times}x, {len(data):,}", *map(_mib, sizes), f"{rate:,.0f}"])
        bench.say(f"streaming {times}x of the data: {_mib(most.unique)} in the whole session")
    columns = ["images", "raw", "heaps + store", "heaps", "object store", "sum of all PSS", "images/s"]
    bench.tables.append(("Memory of a whole session that streams, by size of the dataset", columns, rows))
    bench.target("streaming memory, 16x the data over 1x", found[-1] / found[0], "{:.2f}x", 1.1, False)


def waiting(bench: Bench) -> None:
    """The share of a training step that is spent waiting for its batch."""
    import ray

    every = 4 if bench.manifest.shape[1] >= 32 else 50
    run = bench.run(batch_size=64, steps=3 * every, log_every=every, checkpoint_every=3 * every)
    rows = []
    with connected(None, bench.manifest.nbytes):
        ways = {"resident": lambda: resident_dataset(bench.place, bench.manifest), "stream": bench.streamed}
        for name, data in ways.items():
            box, task = [ray.put(data())], ray.remote(num_cpus=1)(trained)
            folder = bench.folder / f"trial-{name}"
            folder.mkdir()
            logged: Any = ray.get(task.remote(run, box, folder))
            later = logged[1:]  # the first holds the start of the feed
            wait = statistics.mean(m["data_wait"] for m in later)
            step = 64 / statistics.mean(m["images_per_second"] for m in later)
            rows.append([name, f"{1e3 * step:,.0f} ms", f"{1e3 * wait * step:.2f} ms", f"{100 * wait:.3f}%"])
            bench.target(f"waiting for {name} batches", 100 * wait, "{:.3f}%", 1, False)
            bench.say(f"training from {name}: waits {100 * wait:.3f}% of {1e3 * step:,.0f} ms")
    columns = ["feed", "step", "waiting for data", "share"]
    bench.tables.append(("A training step: EDM, DDPM++, batch 64, one thread", columns, rows))


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
    parser.add_argument("--source", type=Path, default=USUAL, help="folder of CIFAR-10 in Parquet files")
    parser.add_argument("--digits", action="store_true", help="scikit-learn's digits instead, to see that it runs")
    parser.add_argument("--only", nargs="+", default=list(PARTS), choices=PARTS, metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--seconds", type=float, default=5.0, help="how long each feed is timed, at least")
    parser.add_argument("--batch", type=int, default=256)
    return parser.parse_args()


def main() -> None:
    args = arguments()
    if not args.digits and not args.source.is_dir():
        sys.exit(f"--source {args.source} is no folder; give one of CIFAR-10 in Parquet files, or --digits")
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
