"""Between a small image of a model and the large canvas that people draw on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from cmray.core.errors import CmrayError
from cmray.editing.colorize import LUMA

#: pixels of the canvas' longer side, about
_SIDE = 384
#: how much of a pixel a brush must cover for it to be in the hole
_COVERED = 0.4
_OPAQUE = 128


def enlarged(pixels: np.ndarray) -> np.ndarray:
    """uint8 [C,H,W] as RGB [sH,sW,3] with a whole s: every pixel a square, so that small images stay crisp."""
    scale = max(1, _SIDE // max(pixels.shape[1:]))
    rgb = np.broadcast_to(pixels, (3, *pixels.shape[1:])).transpose(1, 2, 0)
    return np.ascontiguousarray(rgb.repeat(scale, 0).repeat(scale, 1))


def touched(drawn: Mapping[str, Any] | None) -> bool:
    """Whether anything is drawn in the `layers` of an image editor, uint8 [h,w,4] each."""
    return any(bool((np.asarray(layer)[..., 3] > 0).any()) for layer in (drawn or {}).get("layers") or [])


def hole(drawn: Mapping[str, Any] | None, height: int, width: int) -> np.ndarray:
    """What was painted over, bool [H,W]: pixels that the brush covers to two fifths.

    Raises:
        CmrayError: nothing was drawn, or too little to cover a pixel.
    """
    if not drawn or not touched(drawn):
        raise CmrayError("there is no mask yet: paint over what the model shall fill in")
    covered = np.zeros((height, width))
    for layer in drawn["layers"]:
        alpha = np.asarray(layer)[..., 3] >= _OPAQUE
        covered = np.maximum(covered, _means(alpha.astype(np.float32), height, width))
    if not (covered >= _COVERED).any():
        raise CmrayError("the mask covers no pixel of the image; paint with a larger brush")
    return covered >= _COVERED


def painting(drawn: Mapping[str, Any] | None, source: np.ndarray) -> np.ndarray:
    """The source with what was painted on it, uint8 [C,H,W]; where the brush has not been, to the bit the source.

    Args:
        source: uint8 [C,H,W].

    Raises:
        CmrayError: nothing was painted.
    """
    if not drawn or not touched(drawn):
        raise CmrayError("nothing is painted yet: paint on the canvas what you want to see")
    channels, height, width = source.shape
    result = np.broadcast_to(source, (3, height, width)).astype(np.float32)
    brushed = np.zeros((height, width), np.bool_)
    for layer in drawn["layers"]:
        rgba = np.asarray(layer).astype(np.float32)
        alpha = _means(rgba[..., 3] / 255, height, width)
        paint = np.stack([_means(rgba[..., c] * rgba[..., 3] / 255, height, width) for c in range(3)])
        result = result * (1 - alpha) + paint
        brushed |= alpha > 0
    out = source.copy()
    shown = result if channels == 3 else _luma(result)
    out[:, brushed] = np.rint(shown).clip(0, 255).astype(np.uint8)[:, brushed]
    return out


def _means(values: np.ndarray, height: int, width: int) -> np.ndarray:
    """Means over the areas of a canvas that become one pixel each, [h,w] to [H,W]."""
    from PIL import Image

    if values.shape[0] % height == 0 and values.shape[1] % width == 0:
        return values.reshape(height, values.shape[0] // height, width, -1).mean((1, 3))
    return np.asarray(Image.fromarray(values).resize((width, height), Image.Resampling.BOX))


def _luma(rgb: np.ndarray) -> np.ndarray:
    """[3,H,W] to [1,H,W]   (ITU-R 601, as Pillow makes colours gray)."""
    return np.tensordot(LUMA, rgb, 1)[None]
