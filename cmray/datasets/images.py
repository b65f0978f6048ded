"""From what a source has to pixels of one shape: orientation, alpha, bit depth, channels, a named crop rule."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
from PIL import Image
from pydantic import Field, model_validator

from cmray.core.errors import DataError
from cmray.core.strict import Strict
from cmray.datasets.crops import Crop, cropped
from cmray.datasets.pictures import (
    FORMATS,
    MAX_PIXELS,
    UPRIGHT,
    BadImage,
    as_array,
    as_image,
    opaque_8_bit,
    opened,
    orientation,
    size_of,
    upright,
)
from cmray.datasets.source import Bad, ImageSource, Item

Encoding = Literal["raw", "png", "jpeg"]

#: images on whose longer side there are fewer pixels are kept raw by encoding auto
RAW_BELOW = 256
#: how many images `resolve` looks at
LOOKED_AT = 64

_JPEG_QUALITY = 95
_PNG_NOTES = (b"eXIf", b"tEXt", b"zTXt", b"iTXt")


class ImageRule(Strict):
    """What every image of a dataset is made into."""

    crop: Crop = Field("none", description="how an image becomes square; none takes images of one size only")
    size: int | None = Field(None, ge=1, description="pixels of a side after the crop; null keeps the image's own")
    channels: Literal["auto", 1, 3] = Field("auto", description="1 grayscale, 3 RGB, auto looks at the images")
    background: Literal["white", "black"] = Field("white", description="what transparent pixels are laid on")
    encoding: Literal["auto", "raw", "png", "jpeg"] = Field(
        "auto", description="how shards keep an image; auto: raw pixels below 256 px, png from there on"
    )

    @model_validator(mode="after")
    def _crop_has_its_size(self) -> Self:
        if self.crop != "none" and self.size is None:
            raise ValueError(f"crop {self.crop} needs size, the pixels of a side; crop none works without")
        return self


@dataclass(frozen=True)
class Resolved:
    """A rule without "auto", and the shape [C, H, W] that it gives every image of a source.

    Args:
        strict_gray: one channel because the images looked at have no colours, so one that has them is a surprise.
    """

    rule: ImageRule
    shape: tuple[int, int, int]
    strict_gray: bool = False

    @property
    def encoding(self) -> Encoding:
        assert self.rule.encoding != "auto"
        return self.rule.encoding


def resolve(rule: ImageRule, source: ImageSource) -> Resolved:
    """What `rule` comes to for `source`, decided by up to 64 of its images, evenly spaced.

    Channels auto is 3 if any of them has colours; the shape is that of the first that can be used.

    Raises:
        DataError: there are no images, or none of those looked at can be used.
    """
    if not len(source):
        raise DataError(f"{source.origin} holds no images")
    indices = np.unique(np.linspace(0, len(source) - 1, min(len(source), LOOKED_AT)).astype(np.int64))
    shapes: list[tuple[int, ...]] = []
    first_reason = ""
    for index in indices.tolist():
        (item,) = source.read(index, index + 1)
        try:
            if isinstance(item, Bad):
                raise BadImage(item.reason)
            shapes.append(to_pixels(item, rule).shape)
        except BadImage as bad:
            first_reason = first_reason or f"{item.where}: {bad}"
    if not shapes:
        raise DataError(f"none of the {len(indices)} images looked at can be used; {first_reason}")
    channels = max(shape[0] for shape in shapes)
    _, height, width = shapes[0]
    encoding = rule.encoding
    if encoding == "auto":
        encoding = "raw" if max(height, width) < RAW_BELOW else "png"
    settled = rule.model_copy(update={"channels": channels, "encoding": encoding})
    return Resolved(settled, (channels, height, width), rule.channels == "auto" and channels == 1)


def to_pixels(item: Item, rule: ImageRule | Resolved) -> np.ndarray:
    """uint8 [C, H, W], C-contiguous: of exactly the shape of a Resolved; a rule's channels auto keeps the image's own.

    EXIF orientation is applied, transparency laid on the background, 16-bit grayscale rounded to 8 bits (16-bit
    colours lose their low byte, Pillow reads no more), CMYK and YCbCr made RGB without colour profiles; of an
    animation it is the first frame. Colours become luma (ITU-R 601) where channels is 1.

    Raises:
        BadImage: it cannot be decoded, has more than `MAX_PIXELS`, or does not fit the rule.
    """
    loaded = _loaded(item)
    if isinstance(rule, ImageRule):
        return _pixels(loaded, rule)
    pixels = _pixels(loaded, rule.rule, rule.strict_gray)
    if pixels.shape != rule.shape:
        found, wanted = ("x".join(map(str, shape[1:])) for shape in (pixels.shape, rule.shape))
        raise BadImage(f"the image is {found}, but the first one is {wanted}; --crop and --size make them equal")
    return pixels


def encoded(item: Item, resolved: Resolved, pixels: np.ndarray | None = None) -> bytes:
    """What a shard keeps of an image: raw pixels in C order, or a PNG or JPEG that `decode` reads.

    A file that is already what is wanted is kept byte for byte: compressing a JPEG again loses detail.

    Args:
        pixels: what to_pixels(item, resolved) returned, where the caller has it already.

    Raises:
        BadImage: as to_pixels.
    """
    pixels = to_pixels(item, resolved) if pixels is None else pixels
    if resolved.encoding == "raw":
        return pixels.tobytes()
    if isinstance(item.data, bytes) and _is_wanted(item.data, resolved):
        return item.data
    return encode(pixels, resolved.encoding)


def encode(pixels: np.ndarray, encoding: Encoding) -> bytes:
    """uint8 [1 or 3, H, W] as a PNG, or as a JPEG of quality 95 with all chroma."""
    buffer = io.BytesIO()
    if encoding == "png":
        as_image(pixels).save(buffer, "PNG")
    elif encoding == "jpeg":
        as_image(pixels).save(buffer, "JPEG", quality=_JPEG_QUALITY, subsampling=0)
    else:
        raise ValueError(f"encoding is png or jpeg, found {encoding!r}")
    return buffer.getvalue()


def decode(data: bytes) -> np.ndarray:
    """uint8 [C, H, W] of what `encoded` made a PNG or JPEG. Raises BadImage."""
    image = opened(data, ("JPEG", "PNG"))
    if image.mode not in ("L", "RGB"):
        raise BadImage(f"the image is of mode {image.mode}; shards hold L and RGB")
    return as_array(image)


def _loaded(item: Item) -> Image.Image | np.ndarray:
    if isinstance(item.data, bytes):
        return opened(item.data, FORMATS)
    pixels = item.data
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[0] not in (1, 3) or not pixels.size:
        shape = "x".join(map(str, pixels.shape))
        raise BadImage(
            f"the image is {pixels.dtype} of shape {shape}; arrays are uint8 of 1 or 3 channels x height x width"
        )
    return pixels


def _pixels(loaded: Image.Image | np.ndarray, rule: ImageRule, strict_gray: bool = False) -> np.ndarray:
    if isinstance(loaded, np.ndarray):
        has_colours, (height, width) = len(loaded) == 3, loaded.shape[1:]
        keeps_size = rule.crop == "none" or (height, width) == (rule.size, rule.size)
        image = None if keeps_size and not (has_colours and rule.channels == 1) else as_image(loaded)
    else:
        image = upright(opaque_8_bit(loaded, rule.background), orientation(loaded))
        has_colours, height, width = image.mode == "RGB", image.height, image.width
    if has_colours and strict_gray:
        raise BadImage("the image has colours, but the images looked at first are grayscale; prepare with --channels 3")
    if rule.crop == "none" and rule.size is not None and (height, width) != (rule.size, rule.size):
        raise BadImage(f"the image is {height}x{width}, not {rule.size}x{rule.size}, and crop none changes no sizes")
    if image is None:
        pixels = np.ascontiguousarray(loaded)
    else:
        image = image.convert("L") if has_colours and rule.channels == 1 else image
        if rule.crop != "none" and rule.size is not None:
            image = _cropped(image, rule.crop, rule.size, rule.background)
        pixels = as_array(image)
    return np.repeat(pixels, 3, axis=0) if len(pixels) == 1 and rule.channels == 3 else pixels


def _is_wanted(data: bytes, resolved: Resolved) -> bool:
    """Whether a file that could be decoded is itself what a shard is to hold."""
    channels, height, width = resolved.shape
    image = Image.open(io.BytesIO(data), formats=FORMATS)
    if image.format == "PNG" and any(chunk in data for chunk in _PNG_NOTES):
        image.load()  # notes may stand after the pixels
    return (
        image.format == resolved.encoding.upper()
        and image.mode == ("L" if channels == 1 else "RGB")
        and image.size == (width, height)
        and not image.has_transparency_data
        and not getattr(image, "is_animated", False)
        and orientation(image) not in UPRIGHT
    )


def _cropped(image: Image.Image, crop: Crop, size: int, background: str) -> Image.Image:
    if image.size == (size, size):
        return image
    # no rule makes more pixels than this on its way
    if max(image.size) * max(size, min(image.size)) // min(image.size) * size > MAX_PIXELS:
        raise BadImage(f"the image is {size_of(image)}, too narrow or too small to become {size}x{size}")
    return cropped(image, crop, size, background)
