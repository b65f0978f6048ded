"""Grids of sample images as one PNG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cmray.core.files import beside

if TYPE_CHECKING:
    from PIL.Image import Image as Picture
    from PIL.ImageFont import FreeTypeFont

_BACKGROUND, _INK = (255, 255, 255), (34, 34, 34)
#: pixels of the finished picture: between cells (so that black digits on black do not run together), and around all
_PAD, _MARGIN = 4, 12
_TITLE_PX, _LABEL_PX, _CAPTION_PX = 18, 14, 11


def image_grid(
    images: np.ndarray,
    path: Path,
    *,
    columns: int,
    scale: int = 1,
    captions: Sequence[str] | None = None,
    row_labels: Sequence[str] | None = None,
    title: str | None = None,
) -> Path:
    """Writes a grid (see `grid_picture`) as a PNG; the file appears whole or not at all, missing folders are made."""
    canvas = grid_picture(images, columns=columns, scale=scale, captions=captions, row_labels=row_labels, title=title)
    with beside(path) as tmp:
        canvas.save(tmp, format="PNG")
    return path


def grid_picture(
    images: np.ndarray,
    *,
    columns: int,
    scale: int = 1,
    captions: Sequence[str] | None = None,
    row_labels: Sequence[str] | None = None,
    title: str | None = None,
) -> Picture:
    """Images row by row in a padded grid on white.

    Args:
        images: uint8 [N,C,H,W], N >= 1, C = 1 (grey) or 3 (RGB).
        columns: images a row, >= 1; the last row may be short.
        scale: whole enlargement >= 1 by repeating pixels, so that 8x8 digits stay sharp.
        captions: N texts under the images, shortened to the image's width.
        row_labels: a text left of each row, ceil(N / columns) of them; one row a model, from the same noise.
        title: a line above all.

    Raises:
        ValueError: for another dtype, shape, or number of captions or labels.
    """
    from PIL import Image, ImageDraw

    count, height, width, rows = _check(images, columns, scale, captions, row_labels)
    columns = min(columns, count)
    cell_w, cell_h = width * scale, height * scale
    caption_h = _CAPTION_PX + 5 if captions else 0
    label_w = max((math.ceil(_font(_LABEL_PX).getlength(label)) for label in row_labels or []), default=-10) + 10
    top = _MARGIN + (_TITLE_PX + 12 if title else 0)
    left = _MARGIN + label_w
    grid_w = columns * (cell_w + _PAD) - _PAD
    title_w = math.ceil(_font(_TITLE_PX).getlength(title)) if title else 0
    size = (max(left + grid_w, _MARGIN + title_w) + _MARGIN, top + rows * (cell_h + caption_h + _PAD) - _PAD + _MARGIN)

    canvas = Image.new("RGB", size, _BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    if title:
        draw.text((_MARGIN, _MARGIN), title, fill=_INK, font=_font(_TITLE_PX))
    rgb = np.broadcast_to(images, (count, 3, height, width)).transpose(0, 2, 3, 1)
    large = rgb.repeat(scale, axis=1).repeat(scale, axis=2)
    for i in range(count):
        row, column = divmod(i, columns)
        x, y = left + column * (cell_w + _PAD), top + row * (cell_h + caption_h + _PAD)
        canvas.paste(Image.fromarray(np.ascontiguousarray(large[i])), (x, y))
        if captions:
            text = _fit(captions[i], cell_w)
            draw.text((x + cell_w / 2, y + cell_h + 2), text, fill=_INK, font=_font(_CAPTION_PX), anchor="ma")
        if row_labels and column == 0:
            middle = (left - 10, y + cell_h / 2)
            draw.text(middle, row_labels[row], fill=_INK, font=_font(_LABEL_PX), anchor="rm")
    return canvas


def _check(
    images: np.ndarray,
    columns: int,
    scale: int,
    captions: Sequence[str] | None,
    row_labels: Sequence[str] | None,
) -> tuple[int, int, int, int]:
    """(N, H, W, rows) of arguments that fit together."""
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3) or 0 in images.shape:
        raise ValueError(f"images are {images.dtype} {list(images.shape)}; a grid takes uint8 [N,C,H,W], C = 1 or 3")
    if columns < 1 or scale < 1:
        raise ValueError(f"columns is {columns} and scale is {scale}; both must be at least 1")
    count, _, height, width = images.shape
    rows = math.ceil(count / columns)
    if captions is not None and len(captions) != count:
        raise ValueError(f"there are {len(captions)} captions for {count} images")
    if row_labels is not None and len(row_labels) != rows:
        raise ValueError(f"there are {len(row_labels)} row labels for {rows} rows of {columns} images")
    return count, height, width, rows


@lru_cache
def _font(pixels: int) -> FreeTypeFont:
    """DejaVu Sans as matplotlib ships it: it has σ, · and †, and is the same on every machine."""
    import matplotlib
    from PIL import ImageFont

    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"), pixels)


def _fit(text: str, width: int) -> str:
    font = _font(_CAPTION_PX)
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"
