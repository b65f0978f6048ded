"""How an image that is not square, or of another size, becomes size x size: one small function per rule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from PIL import Image
from PIL.Image import Resampling

Crop = Literal["none", "center", "adm", "lsun", "stretch", "pad"]


def cropped(image: Image.Image, crop: Crop, size: int, background: str) -> Image.Image:
    """An L or RGB image of size x size. Images that are smaller are scaled up by the same rule."""
    return image if crop == "none" or image.size == (size, size) else _RULES[crop](image, size, background)


def center(image: Image.Image, size: int, _background: str) -> Image.Image:
    """The largest central square, resampled with Lanczos."""
    return _central_square(image, min(image.size)).resize((size, size), Resampling.LANCZOS)


def adm(image: Image.Image, size: int, _background: str) -> Image.Image:
    """ImageNet as guided diffusion prepares it: box halvings while there is twice the size, bicubic, central square."""
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Resampling.BOX)
    scale = size / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Resampling.BICUBIC)
    return _central_square(image, size)


def lsun(image: Image.Image, size: int, _background: str) -> Image.Image:
    """The largest central square, resampled with a box filter, as is usual for LSUN."""
    return _central_square(image, min(image.size)).resize((size, size), Resampling.BOX)


def stretch(image: Image.Image, size: int, _background: str) -> Image.Image:
    """All of the image, resampled with Lanczos; what is not square gets another aspect."""
    return image.resize((size, size), Resampling.LANCZOS)


def pad(image: Image.Image, size: int, background: str) -> Image.Image:
    """All of the image, its longer side resampled to size with Lanczos, in the middle of the background."""
    scale = size / max(image.size)
    small = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))), Resampling.LANCZOS)
    canvas = Image.new(image.mode, (size, size), background)
    canvas.paste(small, ((size - small.width) // 2, (size - small.height) // 2))
    return canvas


def _central_square(image: Image.Image, side: int) -> Image.Image:
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))


_RULES: dict[str, Callable[[Image.Image, int, str], Image.Image]] = {
    "center": center,
    "adm": adm,
    "lsun": lsun,
    "stretch": stretch,
    "pad": pad,
}
