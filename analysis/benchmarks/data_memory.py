"""What the processes of a Ray session keep in memory, shared pages counted once."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

FIELDS = {b"Pss:": "pss", b"Pss_Anon:": "anonymous", b"Pss_Shmem:": "mapped"}


@dataclass(frozen=True)
class Memory:
    """Bytes of this process and all below it.

    Args:
        pss: sum of the proportional set sizes, file pages such as libraries included.
        anonymous: the part of it that belongs to no file: heaps, stacks.
        mapped: the part of it in shared memory, which is almost all Ray's object store.
        store: pages of the object store's file, also those that no process maps any more.
    """

    pss: int = 0
    anonymous: int = 0
    mapped: int = 0
    store: int = 0

    @property
    def unique(self) -> int:
        """Heaps and the object store. Library and dataset files are left out: the kernel can drop their pages."""
        return self.anonymous + self.store

    def __sub__(self, other: Memory) -> Memory:
        return Memory(*(getattr(self, f) - getattr(other, f) for f in ("pss", "anonymous", "mapped", "store")))


def memory() -> Memory:
    """Of this process and all below it, now."""
    totals = dict.fromkeys(FIELDS.values(), 0)
    stores: dict[tuple[int, int], int] = {}
    me = psutil.Process()
    for pid in [me.pid, *(child.pid for child in me.children(recursive=True))]:
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_bytes().splitlines()
            stores.update(_store_files(pid))
        except OSError:  # it has just ended
            continue
        for line in lines:
            name, *rest = line.split()
            if name in FIELDS:
                totals[FIELDS[name]] += int(rest[0]) * 1024
    return Memory(**totals, store=sum(stores.values()))


def _store_files(pid: int) -> Iterator[tuple[tuple[int, int], int]]:
    """((device, inode), bytes that it takes) of each object store file that a process has open."""
    for name in os.listdir(f"/proc/{pid}/fd"):
        path = f"/proc/{pid}/fd/{name}"
        try:
            if "/plasma" in os.readlink(path):
                found = os.stat(path)
                yield (found.st_dev, found.st_ino), found.st_blocks * 512
        except OSError:
            continue


class Watch:
    """Memory at short intervals; the highest of each kind and the median moment."""

    def __init__(self) -> None:
        self.seen: list[Memory] = []

    def look(self) -> None:
        self.seen.append(memory())

    @property
    def peak(self) -> Memory:
        return max(self.seen, key=lambda m: m.unique)

    @property
    def typical(self) -> Memory:
        return sorted(self.seen, key=lambda m: m.unique)[len(self.seen) // 2]


@contextmanager
def watching(every: float = 0.1) -> Iterator[Watch]:
    """Looks while the block runs, at least once."""
    watch, done = Watch(), threading.Event()

    def run() -> None:
        while not done.wait(every):
            watch.look()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield watch
    finally:
        done.set()
        thread.join()
        watch.look()


def watched_for(seconds: float) -> Watch:
    """What is seen in the next seconds."""
    with watching() as watch:
        time.sleep(seconds)
    return watch
