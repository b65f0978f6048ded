"""Draws any number of images on a pool, block by block into a folder of parts: memory stays flat, a restart goes on."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cmray.config.identity import content_hash
from cmray.core.errors import DataError, StorageError
from cmray.core.files import beside, write_atomic
from cmray.core.locks import LOCK, locked
from cmray.core.rng import SampleNoise
from cmray.engine.evaluator import Call, Pool
from cmray.engine.model import SAMPLE_BLOCK

#: bytes of pixels of one part at most, where several blocks go together, and of the parts that are on their way
PART_BYTES, WAVE_BYTES = 4 << 20, 256 << 20
#: from so many images on, several blocks go together
MANY = 4096
_ORDER = "order.txt"


@dataclass(frozen=True)
class Drawing:
    """Which images are wanted.

    Args:
        sampler: as plain values.
        weights: "student" or "ema RATE".
        labels: of a class-conditional model, taken in turn; None lets each seed draw its own.
        shape: (C, H, W).
    """

    checkpoint: Path
    weights: str
    weights_sha256: str
    sampler: dict[str, Any]
    first_seed: int
    count: int
    shape: tuple[int, int, int]
    num_classes: int = 0
    labels: tuple[int, ...] | None = None

    @property
    def key(self) -> str:
        """A hash of all that decides the images."""
        return content_hash({k: v for k, v in asdict(self).items() if k != "checkpoint"})

    @property
    def part(self) -> int:
        """Images of a part: whole blocks, several where many images are wanted."""
        block = SAMPLE_BLOCK * int(np.prod(self.shape))
        return SAMPLE_BLOCK * (1 if self.count < MANY else min(8, max(1, PART_BYTES // block)))

    def parts(self) -> list[range]:
        """Places of the images of each part, in 0 .. count - 1."""
        return [range(i, min(i + self.part, self.count)) for i in range(0, self.count, self.part)]

    def seeds(self, places: range) -> range:
        return range(self.first_seed + places.start, self.first_seed + places.stop)

    def given(self, places: range) -> list[int] | None:
        """The labels that were asked for."""
        return None if self.labels is None else [self.labels[i % len(self.labels)] for i in places]

    def label_of(self, places: range) -> np.ndarray | None:
        """The labels that the images have, int64 [n]; None of a model without classes."""
        given = self.given(places)
        if given is None and self.num_classes:
            given = SampleNoise(self.seeds(places), self.shape).integers(self.num_classes).tolist()
        return None if given is None else np.array(given, np.int64)


@dataclass(frozen=True)
class Parts:
    """Pixels of a drawing on disk."""

    folder: Path
    drawing: Drawing

    def file(self, places: range) -> Path:
        return self.folder / f"{places.start:012d}.npy"

    def holds(self, places: range) -> bool:
        """Whether a part is there, whole."""
        try:
            return self._read(places).shape == (len(places), *self.drawing.shape)
        except (OSError, ValueError):
            return False

    def write(self, places: range, pixels: np.ndarray) -> None:
        with beside(self.file(places)) as tmp, tmp.open("wb") as file:
            np.save(file, pixels)

    def read(self) -> Iterator[tuple[range, np.ndarray]]:
        """(places, uint8 [n,C,H,W]) in order."""
        for places in self.drawing.parts():
            yield places, np.asarray(self._read(places))

    def _read(self, places: range) -> np.ndarray:
        return np.load(self.file(places), mmap_mode="r", allow_pickle=False)


@contextmanager
def drawn(
    drawing: Drawing, folder: Path, pool: Pool, progress: Callable[[int, int], None] = lambda *_: None
) -> Iterator[Parts]:
    """The parts of a drawing, made where they are missing; gone when the block ends well.

    They stay when the block is left by an interrupt or an error, and the same drawing goes on from them; parts of
    another one are replaced. Only those of a model that gives no finite images are of no use.

    Args:
        folder: for them; another process's is left alone.
        progress: called with (images that are there, all images).

    Raises:
        StorageError: another process draws into this folder, or it cannot be written.
        DataError: some images are not finite.
    """
    _check_own(folder)
    with locked([folder], "wait for it, or write elsewhere"):
        try:
            parts = Parts(folder, drawing)
            _claim(folder, drawing.key)
            _draw(parts, pool, progress)
            yield parts
        except DataError:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        shutil.rmtree(folder, ignore_errors=True)


def _check_own(folder: Path) -> None:
    """Raises StorageError for a folder that somebody else made: what is in it is going to be removed."""
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if names - {LOCK} and _ORDER not in names:
        raise StorageError(f"{folder} holds files that are not cmray's, such as {min(names)}; move it away")


def _claim(folder: Path, key: str) -> None:
    """Empties the folder of what belongs to another drawing."""
    order = folder / _ORDER
    if order.is_file() and order.read_text() == key:
        return
    for path in folder.iterdir():
        if path.name != LOCK:
            path.unlink()
    write_atomic(order, key)


def _draw(parts: Parts, pool: Pool, progress: Callable[[int, int], None]) -> None:
    drawing = parts.drawing
    missing = [places for places in drawing.parts() if not parts.holds(places)]
    there = drawing.count - sum(map(len, missing))
    progress(there, drawing.count)
    # results of a call live until it returns: a wave of them is what memory holds
    wave = max(4 * pool.size, WAVE_BYTES // (drawing.part * int(np.prod(drawing.shape))))
    for i in range(0, len(missing), wave):
        some = missing[i : i + wave]

        def got(call: int, pixels: np.ndarray, some: list[range] = some) -> None:
            nonlocal there
            parts.write(some[call], pixels)
            there += len(pixels)
            progress(there, drawing.count)

        pool.run([_call(drawing, places) for places in some], got)


def _call(drawing: Drawing, places: range) -> Call:
    given = drawing.given(places)
    return "draw", (str(drawing.checkpoint), drawing.weights, drawing.sampler, drawing.seeds(places), given)
