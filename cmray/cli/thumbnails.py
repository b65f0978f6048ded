"""Small pictures in a terminal: two pixels to a character, in 24-bit colours."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from rich.color import Color
from rich.segment import Segment
from rich.style import Style

#: pixels of a thumbnail's longer side
SIDE = 16


class thumbnails:
    """Images uint8 [N, C, H, W], as many as fit into two rows of a terminal `width` characters wide."""

    def __init__(self, images: np.ndarray, width: int):
        step = max(1, -(-max(images.shape[2:]) // SIDE))
        small = images[:, :, ::step, ::step]
        small = small if small.shape[1] == 3 else np.repeat(small, 3, axis=1)
        height, wide = small.shape[2] + small.shape[2] % 2, small.shape[3]
        columns = max(1, (width + 1) // (wide + 1))
        rows = min(2, -(-len(small) // columns))
        self._canvas = np.zeros((rows * (height + 2), columns * (wide + 1), 3), np.uint8)
        for i, image in enumerate(small[: rows * columns]):
            y, x = i // columns * (height + 2), i % columns * (wide + 1)
            self._canvas[y : y + image.shape[1], x : x + wide] = image.transpose(1, 2, 0)

    def __rich_console__(self, *_: object) -> Iterator[Segment]:
        for upper, lower in zip(self._canvas[0::2], self._canvas[1::2], strict=True):
            for a, b in zip(upper.tolist(), lower.tolist(), strict=True):
                yield Segment("▀", Style(color=Color.from_rgb(*a), bgcolor=Color.from_rgb(*b)))
            yield Segment.line()
