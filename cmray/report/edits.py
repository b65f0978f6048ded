"""Pictures of edits: inputs and results side by side, ladders of noise, strips and animations."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cmray.core.files import beside
from cmray.report.grids import image_grid

#: pixels a cell has at least, so that its caption can be read
_CELL = 110
#: pixels of an animation's side, at least, and milliseconds a frame is shown
_ANIMATED, _MILLISECONDS = 192, 80


def side_by_side(
    rows: Sequence[Sequence[np.ndarray]],
    captions: Sequence[Sequence[str]],
    path: Path,
    *,
    title: str,
    row_labels: Sequence[str] | None = None,
) -> Path:
    """Rows of images with a caption under each; short rows are filled up with white. Written whole or not at all.

    Args:
        rows: uint8 [C,H,W] each, all of one shape.
    """
    columns = max(len(row) for row in rows)
    blank = np.full_like(rows[0][0], 255)
    images = [image for row in rows for image in [*row, *[blank] * (columns - len(row))]]
    texts = [text for row in captions for text in [*row, *[""] * (columns - len(row))]]
    return image_grid(
        np.stack(images), path, columns=columns, scale=_scale(rows[0][0], _CELL), captions=texts,
        row_labels=row_labels, title=title,
    )  # fmt: skip


def animation(frames: Sequence[np.ndarray], path: Path) -> Path:
    """A GIF that goes through frames, uint8 [C,H,W], there and back, for ever. Written whole or not at all."""
    from PIL import Image

    scale = _scale(frames[0], _ANIMATED)
    pictures = []
    for frame in [*frames, *frames[-2:0:-1]]:
        large = frame.repeat(scale, 1).repeat(scale, 2)
        pictures.append(Image.fromarray(large[0] if len(large) == 1 else large.transpose(1, 2, 0)))
    with beside(path) as tmp:
        pictures[0].save(
            tmp, format="GIF", save_all=True, append_images=pictures[1:], duration=_MILLISECONDS, loop=0, optimize=False
        )
    return path


def _scale(image: np.ndarray, wanted: int) -> int:
    return max(1, -(-wanted // image.shape[-1]))
