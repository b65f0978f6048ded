"""The way from noise to images as pictures: a strip of all levels, or an animation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cmray.core.files import beside
from cmray.report.grids import grid_picture

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

#: levels of a strip, frames of an animation; of more, evenly spread ones are shown, the first and the last among them
MOST_LEVELS, MOST_FRAMES = 12, 60
#: milliseconds of the levels of an animation together, of one of them, and of the images at its end
_ALL_MS, _LEVEL_MS, _END_MS = 5_000, (80, 700), 2_000
_CELL = 64

#: (noise level, noisy uint8 [n,C,H,W], what the network says uint8 [n,C,H,W])
Level = tuple[float, np.ndarray, np.ndarray]


def strip(levels: Sequence[Level], images: np.ndarray, path: Path, names: Sequence[str], title: str) -> Path:
    """Writes a `strip_picture` as a PNG."""
    picture = strip_picture(levels, images, names, title)
    with beside(path) as tmp:
        picture.save(tmp, format="PNG")
    return path


def strip_picture(
    levels: Sequence[Level], images: np.ndarray, names: Sequence[str], title: str | None = None
) -> Picture:
    """Two rows an image, the noisy state and the network's answer; a column a level, the image last.

    Args:
        levels: in the order in which they were visited.
        images: uint8 [n,C,H,W], what came out.
        names: of the n images.
    """
    shown = _spread(levels, MOST_LEVELS)
    cells, rows = [], []
    for k, name in enumerate(names):
        cells += [noisy[k] for _, noisy, _ in shown] + [images[k]]
        cells += [said[k] for _, _, said in shown] + [images[k]]
        rows += [f"{name}, noisy", "network"]
    captions = ([_sigma(level[0]) for level in shown] + ["sample"]) * len(rows)
    return grid_picture(
        np.stack(cells),
        columns=len(shown) + 1,
        scale=_scale(images),
        captions=captions,
        row_labels=rows,
        title=title,
    )


def animation(levels: Sequence[Level], images: np.ndarray, path: Path, names: Sequence[str]) -> Path:
    """A GIF that never ends: a frame a level, noisy states above what the network says of them; the images last.

    Arguments as in `strip_picture`.
    """
    from PIL import Image

    shown = _spread(levels, MOST_FRAMES)
    frames = [(f"noise level {_sigma(sigma)}", noisy, said) for sigma, noisy, said in shown]
    frames.append(("samples", images, images))
    pictures = [
        grid_picture(
            np.concatenate([noisy, said]),
            columns=len(images),
            scale=_scale(images),
            captions=[*names, *names],
            row_labels=["noisy", "network"],
            title=title,
        )
        for title, noisy, said in frames
    ]
    size = max(p.size[0] for p in pictures), max(p.size[1] for p in pictures)
    padded = [Image.new("RGB", size, (255, 255, 255)) for _ in pictures]
    for page, picture in zip(padded, pictures, strict=True):
        page.paste(picture, (0, 0))
    each = min(max(_ALL_MS // len(shown), _LEVEL_MS[0]), _LEVEL_MS[1])
    options = {"save_all": True, "append_images": padded[1:], "loop": 0, "duration": [each] * len(shown) + [_END_MS]}
    with beside(path) as tmp:
        padded[0].save(tmp, format="GIF", **options)
    return path


def _spread(levels: Sequence[Level], most: int) -> list[Level]:
    if len(levels) <= most:
        return list(levels)
    return [levels[i] for i in np.linspace(0, len(levels) - 1, most).round().astype(int)]


def _sigma(sigma: float) -> str:
    return f"σ {sigma:.3g}"


def _scale(images: np.ndarray) -> int:
    return max(1, _CELL // images.shape[-1])
