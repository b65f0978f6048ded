"""Images of any size as float images of the size of a network, by the rules that published numbers used.

A rule is a separable linear map, so a batch of any length is two matrix products. What the usual libraries give is the
same to the last bits of float32, and the tests compare with them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

#: uint8 [B, C, H, W] and the side of the result -> float32 [B, C, side, side] in [0, 255]
Resize = Callable[[Tensor, int], Tensor]


def clean(images: Tensor, side: int) -> Tensor:
    """Bicubic with antialiasing on float images, as Pillow does it in its mode F: clean-fid's `clean`.

    Sums are in float64 and every pass is rounded to float32 once, as there.
    """
    _, channels, height, width = images.shape
    across = torch.from_numpy(bicubic_weights(width, side)).to(images.device)
    down = torch.from_numpy(bicubic_weights(height, side)).to(images.device)
    out = torch.empty((len(images), channels, side, side), device=images.device)
    # one by one they stay in a CPU's cache, which is several times faster; on a GPU the fewer calls the better
    step = 1 if images.device.type == "cpu" else max(1, 2**24 // (channels * side * side))
    for some, result in zip(images.split(step), out.split(step), strict=True):
        rows = some.reshape(-1, height, width).double()
        if width != side:
            rows = (rows @ across.T).float().double()
        if height != side:
            rows = torch.bmm(down.expand(len(rows), -1, -1), rows)
        result.copy_(rows.view(result.shape))
    return out.clamp_(0, 255)


@functools.lru_cache(maxsize=64)
def bicubic_weights(size: int, side: int) -> np.ndarray:
    """float64 [side, size], rows sum to 1: cubic convolution with a = -1/2 (Keys, 1981), widened when shrinking.

    Output i is centred on (i + 1/2) size/side; the kernel reaches 2 max(1, size/side) input pixels either way and is
    cut off at the border.
    """
    weights = np.zeros((side, size))
    step = size / side
    stretch = max(1.0, step)
    reach = 2 * stretch
    for i in range(side):
        centre = (i + 0.5) * step
        first, end = max(int(centre - reach + 0.5), 0), min(int(centre + reach + 0.5), size)
        x = np.abs((np.arange(first, end) - centre + 0.5) / stretch)
        near = (1.5 * x - 2.5) * x * x + 1
        far = ((-0.5 * x + 2.5) * x - 4) * x + 2
        k = np.where(x < 1, near, np.where(x < 2, far, 0.0))
        weights[i, first:end] = k / k.sum()
    return weights


def bilinear(images: Tensor, side: int) -> Tensor:
    """torch's bilinear, corners not aligned and no antialiasing: clean-fid's `legacy_pytorch`.

    On a CPU torch rounds by the number of images, channels and threads: one RGB image at a time, as clean-fid, is what
    keeps an image the same in every batch.
    """
    step = 1 if images.device.type == "cpu" else len(images)
    how = {"size": (side, side), "mode": "bilinear", "align_corners": False}
    out = [F.interpolate(as_rgb(some).float(), **how) for some in images.split(step)]
    return torch.cat(out)[:, : images.shape[1]].clamp(0, 255)


def tensorflow(images: Tensor, side: int) -> Tensor:
    """TensorFlow 1's bilinear, in which output i reads from i size/side: clean-fid's `legacy_tensorflow`.

    As the published network does it inside: by sampling a grid that is moved by half a pixel of the input less half
    of the output, with the border repeated.
    """
    batch, channels, height, width = images.shape
    theta = torch.tensor([[1.0, 0.0, 1 / width - 1 / side], [0.0, 1.0, 1 / height - 1 / side]], device=images.device)
    grid = F.affine_grid(theta.expand(batch, -1, -1), [batch, channels, side, side], align_corners=False)
    return F.grid_sample(images.float(), grid, mode="bilinear", padding_mode="border", align_corners=False)


def pillow(images: Tensor, side: int) -> Tensor:
    """Pillow's bicubic on 8-bit images, rounded to whole levels: the shorter side becomes `side`, the middle is kept.

    The preprocessing of CLIP and DINOv2. Pillow's 8-bit arithmetic is its own, so images go through it one by one.
    """
    from PIL import Image

    _, channels, height, width = images.shape
    short = min(height, width)
    tall, wide = (side if n == short else int(side * n / short) for n in (height, width))
    top, left = (round((n - side) / 2) for n in (tall, wide))
    out = np.empty((len(images), channels, side, side), np.float32)
    for row, image in zip(out, images.cpu().numpy(), strict=True):
        picture = Image.fromarray(image[0] if channels == 1 else np.ascontiguousarray(image.transpose(1, 2, 0)))
        pixels = np.asarray(picture.resize((wide, tall), Image.Resampling.BICUBIC))[
            top : top + side, left : left + side
        ]
        row[:] = pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)
    return torch.from_numpy(out).to(images.device)


def none(images: Tensor, side: int) -> Tensor:
    """Images as they are; they must have the size already."""
    if images.shape[-2:] != (side, side):
        raise ValueError(f"images are {list(images.shape[-2:])}, not {side}x{side}, and are not to be resized")
    return images.float()


#: by the names that options and numbers carry
RESIZERS: dict[str, Resize] = {
    "clean": clean,
    "bilinear": bilinear,
    "tensorflow": tensorflow,
    "pillow": pillow,
    "none": none,
}


def as_rgb(images: Tensor) -> Tensor:
    """Grayscale as three equal channels."""
    return images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images
