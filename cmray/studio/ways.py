"""The tab Interpolate: frames between two seeds, computed once and looked at often."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import TYPE_CHECKING

import numpy as np

from cmray.report.grids import grid_picture
from cmray.studio import values
from cmray.studio.shelf import Shelf, timed

if TYPE_CHECKING:
    from PIL.Image import Image

#: ways that are kept
_KEPT = 16
_LARGE, _SMALL, _ACROSS = 320, 44, 640
#: frames of the strip under the large one
_STRIP = 11

Key = tuple[str, int, int, int, int | None, str]


class Ways:
    """Frames by model, seeds and steps."""

    def __init__(self, shelf: Shelf):
        self._shelf = shelf
        self._kept: OrderedDict[Key, tuple[np.ndarray, float]] = OrderedDict()
        self._lock = threading.Lock()

    def frames(
        self, name: str, between: tuple[int, int], count: int, steps: int | None = None, labels: str = ""
    ) -> tuple[np.ndarray, float]:
        """uint8 [count,C,H,W] from one seed's image to the other's, and the seconds they took when they were made.

        Raises:
            CmrayError: what the model cannot do.
        """
        a, b = (values.whole(seed, "the seed") for seed in between)
        key = (name, a, b, values.whole(count, "the number of frames", 2), steps, labels)
        with self._lock:
            if key not in self._kept:
                self._kept[key] = self._made(*key)
                while len(self._kept) > _KEPT:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(key)
            return self._kept[key]

    def _made(self, name: str, a: int, b: int, count: int, steps: int | None, labels: str) -> tuple[np.ndarray, float]:
        with self._shelf.using(name) as model:
            frames, seconds = timed(
                lambda: model.edit(
                    "interpolate",
                    between=(a, b),
                    frames=count,
                    steps=steps,
                    labels=values.labels(labels),
                    uint8=True,
                )
            )
        return frames[0].numpy(), seconds


def large(frame: np.ndarray, caption: str) -> Image:
    """One frame, uint8 [C,H,W], enlarged by whole pixels."""
    return grid_picture(frame[None], columns=1, scale=max(1, _LARGE // frame.shape[1]), captions=[caption])


def strip(frames: np.ndarray, at: int) -> Image:
    """Evenly spread frames, the ends among them; an arrow under the one nearest to frame `at`."""
    places = np.linspace(0, len(frames) - 1, min(_STRIP, len(frames))).round().astype(int)
    nearest = int(np.abs(places - at).argmin())
    height = frames.shape[2]
    scale = max(-(-_SMALL // height), min(_ACROSS // (len(places) * height), 96 // height), 1)
    captions = [f"{'▲ ' if i == nearest else ''}{place / (len(frames) - 1):.2f}" for i, place in enumerate(places)]
    return grid_picture(frames[places], columns=len(places), scale=scale, captions=captions)
