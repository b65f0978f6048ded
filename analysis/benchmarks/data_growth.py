"""Memory of resident and streamed datasets, several streams at once, and what training waits for."""

from __future__ import annotations

import ctypes
import statistics
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from data_bench import Bench
from data_feeds import rates, start_feeds, stop_feeds, trained, wait_for_images, worker_sizes
from data_memory import Memory, memory, watched_for, watching

from cmray.cluster.connect import connected, cores
from cmray.cluster.data import put_resident, resident_dataset
from cmray.config.run import RunConfig
from cmray.datasets import ImageDataset
from cmray.datasets.manifest import read_manifest
from cmray.datasets.shards import ShardReader, default_window
from cmray.datasets.whole import write_shards
from cmray.engine.batches import open_batches
from cmray.engine.session import PlainSession, prepare_process

MIB = 2**20


def resident_memory(bench: Bench) -> None:
    """What loading a resident dataset adds to a session in which two workers are busy with its first block alone."""
    import ray

    manifest, raw = bench.manifest, bench.manifest.nbytes
    tiny, run = _first_block(bench), bench.run()
    with connected(None, raw):
        fresh = memory()
        workers = [ray.remote(num_cpus=1)(Walker).remote() for _ in range(2)]
        before = _walked(
            workers, run, [put_resident(tiny, read_manifest(tiny))], 3 * manifest.count, bench.args.seconds
        )
        with watching(0.05) as loading:
            box = [put_resident(bench.place, manifest)]
        steady = _walked(workers, run, box, 3 * manifest.count, bench.args.seconds)
    rows = [
        _memory_row("peak while loading", loading.peak - before, raw),
        _memory_row("steady, after both workers' epochs", steady - before, raw),
        _memory_row("the same, over a fresh session", steady - fresh, raw),
    ]
    columns = ["moment", "heaps + store", "over raw", "heaps", "object store", "shared memory (PSS)", "sum of all PSS"]
    bench.tables.append((f"Memory of a resident dataset of {raw / MIB:,.1f} MiB, growth", columns, rows))
    bench.target("resident memory over raw bytes", (steady - before).unique / raw, "{:.2f}x", 1.1, False)
    bench.say(f"resident memory: {(steady - before).unique / raw:.2f}x of the raw bytes")


class Walker:
    """A worker that takes batches in its main thread, as training does, and then keeps what it has."""

    def walk(self, run: RunConfig, box: list[Any], images: int) -> None:
        import ray

        prepare_process(1)
        self.batches = open_batches(run, ray.get(box[0]), PlainSession(torch.device("cpu")))
        for step in range(-(-images // run.train.batch_size)):
            self.batches.batch(step, 0, 1)
        ctypes.CDLL(None).malloc_trim(0)  # what malloc keeps for the next batch: some 10 MiB, whatever the dataset


def _walked(workers: list[Any], run: RunConfig, box: list[Any], images: int, seconds: float) -> Memory:
    """Memory after every worker has taken so many images."""
    import ray

    ray.get([worker.walk.remote(run, box, images) for worker in workers])
    time.sleep(seconds / 2)
    return watched_for(seconds / 2).typical


def _first_block(bench: Bench) -> Path:
    """A prepared dataset of about 3 MiB, so that imports and the buffers of batches are not put down to the images."""
    manifest, folder = bench.manifest, bench.folder / "tiny"
    images, labels = ShardReader(bench.place, manifest).read(manifest.blocks()[0])
    write_shards(ImageDataset("tiny", "train", manifest.source, images, labels, manifest.classes), folder, 1)
    return folder


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
        data = bench.repeated(times)
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
