"""What Ray's reading and decoding tasks run. It imports no torch, so that their processes start quickly."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa

from cmray.core.errors import DataError
from cmray.datasets.location import Location
from cmray.datasets.manifest import Manifest
from cmray.datasets.shards import ShardReader, Unit, rows_of


def make(work: Callable[[tuple[int, int]], Any], span: tuple[int, int]) -> Any:
    """One piece of a preparation."""
    return work(span)


#: seconds without work after which a reader is taken to be done
IDLE = 0.5
#: stands for the index of a row where a unit could not be read
FAILED = -1


class Reader:
    """Reads one unit in a Ray task.

    Args:
        leave_nothing: give freed memory back at once; a process that is kept for later tasks would keep it else.
    """

    def __init__(self, place: Location, manifest: Manifest, units: tuple[Unit, ...], leave_nothing: bool):
        self.place, self.manifest, self.units = place, manifest, units
        self.leave_nothing = leave_nothing
        self._reader: ShardReader | None = None
        self._later: threading.Timer | None = None

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        self._reader = self._reader or ShardReader(self.place, self.manifest)
        if self.leave_nothing:
            pa.set_memory_pool(pa.system_memory_pool())
            _give_back()
            if self._later is not None:
                self._later.cancel()
            self._later = threading.Timer(IDLE, _give_back)  # once the last rows have left
            self._later.daemon = True
            self._later.start()
        try:
            return rows_of(self._reader, self.units[int(batch["item"][0])])
        except DataError:  # Ray would wrap it beyond recognition
            image = np.zeros((1, *self.manifest.shape), np.uint8)
            row = {"index": np.array([FAILED]), "image": image}
            return {**row, "label": np.zeros(1, np.int64)} if self.manifest.classes else row


def _give_back() -> None:
    """Returns what malloc keeps of freed memory to the system, where it is glibc's."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
