"""Batches from a dataset that is too large for memory: block after block, shuffled in windows, always in one order.

In epoch e cells of consecutive images are permuted and shared out equally among the workers; each worker puts its cells
together to windows of about `shuffle_buffer` images and shuffles every window. What a worker sees is a function of
(seed, rank, world size, position) alone, so a resumed run continues the exact sequence: it reads the window that it was
in again.
"""

from __future__ import annotations

import queue
import threading
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cmray.core.errors import DataError
from cmray.core.rng import numpy_generator
from cmray.datasets.location import Location
from cmray.datasets.manifest import Block, Manifest
from cmray.datasets.shards import ShardReader, Unit

Rows = tuple[np.ndarray, np.ndarray | None]


#: reads units in the given order; rows may come in chunks of any size
ReadUnits = Callable[[Location, Manifest, Iterator[Unit]], Iterator[Rows]]


def read_here(place: Location, manifest: Manifest, units: Iterator[Unit]) -> Iterator[Rows]:
    """The simplest ReadUnits: in this process."""
    reader = ShardReader(place, manifest)
    for unit in units:
        yield reader.read_unit(unit)


@dataclass(frozen=True)
class StreamedDataset:
    """A prepared dataset that stays in its shards.

    Args:
        place: the prepared folder.
        read: how units are read where the run trains.
    """

    place: Location
    manifest: Manifest
    read: ReadUnits = read_here

    def __len__(self) -> int:
        return self.manifest.count

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.manifest.shape

    @property
    def classes(self) -> tuple[str, ...]:
        return self.manifest.classes


@dataclass(frozen=True)
class Window:
    epoch: int
    number: int  # in the epoch
    units: tuple[Unit, ...]

    @property
    def rows(self) -> int:
        return sum(unit.rows for unit in self.units)


class StreamOrder:
    """Which images one worker sees, and when. It does not depend on how the dataset is cut into shards.

    The dataset is cut into cells of consecutive images; every epoch permutes them and gives each worker an equal
    share of the images in that order.

    Args:
        blocks: of the dataset.
        cell: images of a cell, best the rows of a block.
        seed: another seed, another order.
        rank, world_size: this worker among all; over an epoch each image is seen by exactly one of them.
        window_rows: images that are shuffled together.

    Raises:
        DataError: fewer images than workers.
    """

    def __init__(self, blocks: Sequence[Block], cell: int, seed: int, rank: int, world_size: int, window_rows: int):
        self.count = sum(block.rows for block in blocks)
        if self.count < world_size:
            raise DataError(f"{self.count} images cannot be streamed to {world_size} workers; give each at least one")
        self.blocks, self._firsts = tuple(blocks), [block.first for block in blocks]
        self.cell, self.seed, self.rank, self.world_size, self.window_rows = cell, seed, rank, world_size, window_rows
        self._epoch: tuple[int, list[Window]] | None = None

    def windows(self, epoch: int) -> list[Window]:
        """This worker's windows of an epoch."""
        if self._epoch is None or self._epoch[0] != epoch:
            windows: list[Window] = []
            group: list[Unit] = []
            rows = 0
            for units in self._share(epoch):
                group += units
                rows += sum(unit.rows for unit in units)
                if rows >= self.window_rows:
                    windows.append(Window(epoch, len(windows), tuple(group)))
                    group, rows = [], 0
            if group:
                windows.append(Window(epoch, len(windows), tuple(group)))
            self._epoch = epoch, windows
        return self._epoch[1]

    def _share(self, epoch: int) -> Iterator[list[Unit]]:
        """This worker's part of the permuted cells, places low <= p < high of the epoch: what it takes of each."""
        slot = (self.rank + epoch) % self.world_size  # who gets an odd image more changes from epoch to epoch
        low, high = (self.count * k // self.world_size for k in (slot, slot + 1))
        at = 0
        for i in numpy_generator("blocks", self.seed, epoch).permutation(-(-self.count // self.cell)).tolist():
            first, last = i * self.cell, min((i + 1) * self.cell, self.count)
            begin, end = max(first, first + low - at), min(last, first + high - at)
            at += last - first
            if begin < end:
                yield list(self._units(begin, end))

    def _units(self, start: int, stop: int) -> Iterator[Unit]:
        """Images start <= i < stop of the dataset, as parts of blocks."""
        while start < stop:
            block = self.blocks[bisect_right(self._firsts, start) - 1]
            end = min(stop, block.first + block.rows)
            yield Unit(block, start - block.first, end - block.first)
            start = end

    def permutation(self, window: Window) -> np.ndarray:
        """The order in which the rows of a window are seen."""
        generator = numpy_generator("window", self.seed, window.epoch, self.world_size, self.rank, window.number)
        return generator.permutation(window.rows)

    def locate(self, position: int) -> tuple[int, int, int]:
        """(epoch, window, offset in the window) of this worker's position-th image from the start of training."""
        epoch = 0
        while True:
            windows = self.windows(epoch)
            rows = sum(window.rows for window in windows)
            if position < rows:
                break
            position -= rows
            epoch += 1
        for window in windows:
            if position < window.rows:
                return epoch, window.number, position
            position -= window.rows
        raise AssertionError("unreachable")

    def after(self, epoch: int, window: int) -> Iterator[Window]:
        """Windows from a given one on, without end."""
        while True:
            yield from self.windows(epoch)[window:]
            epoch, window = epoch + 1, 0


@dataclass
class _Filled:
    images: np.ndarray
    labels: np.ndarray | None
    order: np.ndarray


class StreamBatches:
    """Host batches of one worker. A thread reads one window ahead of the one in use.

    Args:
        data: what to read.
        batch_size: images per step over all workers.
        order: this worker's.
    """

    def __init__(self, data: StreamedDataset, batch_size: int, order: StreamOrder):
        self.data, self.batch_size, self.order = data, batch_size, order
        self._position = -1
        self._now: _Filled | None = None
        self._at = 0
        self._thread: _Ahead | None = None

    def host(self, step: int, part: int, parts: int) -> Rows:
        """(uint8 [B / parts, C, H, W], labels or None) of a part of this worker."""
        size = self.batch_size // parts
        mine = part - self.order.rank * (parts // self.order.world_size)
        position = step * (self.batch_size // self.order.world_size) + mine * size
        if position != self._position:
            self._seek(position)
        images = np.empty((size, *self.data.shape), np.uint8)
        labels = np.empty(size, np.int64) if self.data.classes else None
        filled = 0
        while filled < size:
            now = self._current()
            rows = now.order[self._at : self._at + size - filled]
            images[filled : filled + len(rows)] = now.images[rows]
            if labels is not None:
                assert now.labels is not None
                labels[filled : filled + len(rows)] = now.labels[rows]
            filled += len(rows)
            self._at += len(rows)
        self._position = position + size
        return images, labels

    def _current(self) -> _Filled:
        if self._now is None or self._at == len(self._now.order):
            assert self._thread is not None
            self._now = None  # its memory goes before the next is asked for
            self._now, self._at = self._thread.next(), 0
        return self._now

    def _seek(self, position: int) -> None:
        self.close()
        epoch, window, offset = self.order.locate(position)
        self._thread = _Ahead(self.data, self.order, epoch, window)
        self._now, self._at = self._thread.next(), offset

    def close(self) -> None:
        if self._thread is not None:
            self._thread.stop()
        self._thread, self._now, self._position = None, None, -1


class _Ahead:
    """Fills windows in a thread; at most one waits to be taken."""

    def __init__(self, data: StreamedDataset, order: StreamOrder, epoch: int, window: int):
        self._data, self._order = data, _copy(order)
        self._ready: queue.Queue[_Filled | BaseException] = queue.Queue()
        self._room = threading.Semaphore(1)
        self._stopped = False
        self._thread = threading.Thread(target=self._run, args=(epoch, window), daemon=True, name="cmray-stream")
        self._thread.start()

    def next(self) -> _Filled:
        """The next window. Raises what reading raised."""
        found = self._ready.get()
        if isinstance(found, BaseException):
            self._ready.put(found)  # for whoever asks again
            raise found
        self._room.release()
        return found

    def stop(self) -> None:
        self._stopped = True
        self._ready.put(RuntimeError("the stream was closed"))  # for whoever waits in another thread
        self._room.release()
        self._thread.join(timeout=30)

    def _run(self, epoch: int, window: int) -> None:
        rows: Any = None
        try:
            data, order = self._data, self._order
            units = (unit for each in _copy(order).after(epoch, window) for unit in each.units)
            rows = data.read(data.place, data.manifest, units)
            chunks = _Chunks(rows)
            for each in order.after(epoch, window):
                self._room.acquire()
                if self._stopped:
                    return
                images = np.empty((each.rows, *data.shape), np.uint8)
                labels = np.empty(each.rows, np.int64) if data.classes else None
                chunks.fill(images, labels)
                self._ready.put(_Filled(images, labels, order.permutation(each)))
        except BaseException as error:
            self._ready.put(error)
        finally:
            if rows is not None and hasattr(rows, "close"):
                rows.close()


def _copy(order: StreamOrder) -> StreamOrder:
    """The same order with a memory of its own: two readers at different epochs would make each other slow."""
    out = StreamOrder.__new__(StreamOrder)
    out.__dict__.update(order.__dict__)
    return out


class _Chunks:
    """Regroups chunks of rows."""

    def __init__(self, rows: Iterator[Rows]):
        self._rows = rows
        self._left: Rows | None = None

    def fill(self, images: np.ndarray, labels: np.ndarray | None) -> None:
        done = 0
        while done < len(images):
            pixels, told = self._left or next(self._rows)
            take = min(len(pixels), len(images) - done)
            images[done : done + take] = pixels[:take]
            if labels is not None:
                assert told is not None
                labels[done : done + take] = told[:take]
            done += take
            rest = None if take == len(pixels) else (pixels[take:], told[take:] if told is not None else None)
            self._left = rest
