"""Pictures to edit, from files, folders and datasets, at the size that a model takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from cmray.core.errors import DataError
from cmray.datasets.crops import Crop
from cmray.datasets.folder import SUFFIXES
from cmray.datasets.images import ImageRule, to_pixels
from cmray.datasets.manifest import MANIFEST
from cmray.datasets.pictures import BadImage
from cmray.datasets.source import Item
from cmray.engine.images import ImageReader, drawn, find_images

#: pictures of a folder
MOST = 1024

Background = Literal["white", "black"]


@dataclass(frozen=True)
class Picture:
    """One input.

    Args:
        name: for captions and file names: the file's without its ending, or the dataset's with a number.
        pixels: uint8 [C,H,W] of the model's shape.
        size: (height, width) of the file.
        gray: the file has no colours.
        small: it was taken as the small image of superres; each of its pixels fills a patch.
    """

    name: str
    pixels: np.ndarray
    size: tuple[int, int]
    gray: bool
    small: bool = False


@dataclass(frozen=True)
class Rule:
    """How a picture becomes (C, H, W): which part of it is taken, and what transparent pixels are laid on.

    Args:
        patch: superres' factor: a file that is smaller by it is taken as it is.
    """

    shape: tuple[int, int, int]
    crop: Crop = "center"
    background: Background = "white"
    patch: int | None = None


def read_pictures(inputs: Sequence[str], rule: Rule, take: int, storage: Path, option: str) -> list[Picture]:
    """All pictures that `inputs` name: image files, folders of them, .npz files, prepared folders, dataset names.

    Args:
        take: how many of a dataset or an .npz, drawn by a fixed seed; files and folders are taken whole.
        option: what the messages call the inputs.

    Raises:
        DataError: a place that does not exist, a file that is no image, an image that the crop rule cannot take.
    """
    found: list[Picture] = []
    for text in inputs:
        path = Path(text).expanduser()
        if path.is_dir() and not (path / MANIFEST).is_file():
            files = sorted(
                p for p in path.rglob("*") if p.suffix[1:].lower() in SUFFIXES and not p.name.startswith(".")
            )
            if not files:
                raise DataError(f"{option}: {path} holds no images ({', '.join(SUFFIXES)})")
            if len(files) > MOST:
                raise DataError(f"{option}: {path} holds {len(files):,} images; at most {MOST:,} are edited at once")
            found += [_read(file, rule, option) for file in files]
        elif path.is_file() and path.suffix.lower() != ".npz":
            found.append(_read(path, rule, option))
        else:
            images = find_images(text, storage, option)
            images = drawn(images, min(take, images.count))
            for i, pixels in enumerate(ImageReader(images).read(0, images.count)):
                found.append(_fitted(f"{images.name}-{i}", f"image {i} of {text}", pixels, rule, option))
    return found


def read_mask(file: Path, pictures: Sequence[Picture], rule: Rule, option: str) -> np.ndarray:
    """A mask, bool [H,W], true where it is white: of the model's size, or of the inputs' and then cropped as they are.

    Raises:
        DataError: no image, or of another size.
    """
    native = _native(file, "black", option)
    gray = _as(f"{option}: {file}", native, ImageRule.model_validate({"channels": 1}))
    size, (_, height, width) = gray.shape[1:], rule.shape
    if size == (height, width):
        return gray[0] >= 128
    others = [p for p in pictures if p.size != size]
    if others or not pictures:
        wanted = f"{height}x{width} like the model's images"
        if pictures:
            wanted += f" or {'x'.join(map(str, others[0].size))} like {others[0].name}"
        raise DataError(f"{option}: {file} is {size[0]}x{size[1]} pixels (H x W); give one of {wanted}")
    black = Rule((1, height, width), rule.crop, "black")  # what crop pad adds is no hole
    return _fitted(file.stem, str(file), gray, black, option).pixels[0] >= 128


def _read(file: Path, rule: Rule, option: str) -> Picture:
    return _fitted(file.stem, str(file), _native(file, rule.background, option), rule, option)


def _native(file: Path, background: Background, option: str) -> np.ndarray:
    try:
        data = file.read_bytes()
    except OSError as error:
        raise DataError(f"{option}: {file} cannot be read: {error.strerror}") from None
    return _as(f"{option}: {file}", data, ImageRule.model_validate({"background": background}))


def _fitted(name: str, where: str, native: np.ndarray, rule: Rule, option: str) -> Picture:
    channels, height, width = rule.shape
    begins = f"{option}: {where}"
    size = (native.shape[1], native.shape[2])
    gray = len(native) == 1 or bool((native == native[:1]).all())
    coloured = ImageRule.model_validate({"channels": channels})
    if rule.patch and size == (height // rule.patch, width // rule.patch):
        small = _as(begins, native, coloured)
        return Picture(name, small.repeat(rule.patch, 1).repeat(rule.patch, 2), size, gray, small=True)
    if size != (height, width):
        if rule.crop == "none" or height != width:
            why = "--crop none changes no sizes" if rule.crop == "none" else "only square images can be resized to"
            raise DataError(f"{begins} is {size[0]}x{size[1]} pixels (H x W), the model's are {height}x{width}; {why}")
        options = {"crop": rule.crop, "size": height, "background": rule.background}
        coloured = ImageRule.model_validate({**options, "channels": channels})
    return Picture(name, _as(begins, native, coloured), size, gray)


def _as(begins: str, data: bytes | np.ndarray, rule: ImageRule) -> np.ndarray:
    try:
        return to_pixels(Item(begins, data), rule)
    except BadImage as error:
        raise DataError(f"{begins}: {error}") from None
