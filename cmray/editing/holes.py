"""Holes in images: a mask, a box or a drawn word."""

from __future__ import annotations

from typing import Any

import numpy as np
from pydantic import ConfigDict, Field, field_validator

from cmray.core.errors import CmrayError
from cmray.editing.base import EditingTask

#: a word is drawn so much larger than the image, then made smaller
_FINER = 16
#: how much of a pixel the word must cover; below a half, as thin strokes would vanish from small images
_COVERED = 0.4


class Holed(EditingTask):
    """A task of which a part of the image can be chosen.

    Args:
        mask: bool or uint8 [H,W], true or at least 128 where the hole is; of the size of the images.
        box: (left, top, width, height) in pixels of the images.
        word: drawn as large as fits; its letters are the hole.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    mask: np.ndarray | None = Field(None, description="array [H,W]: true, or 128 and above, where the hole is")
    box: tuple[int, int, int, int] | None = Field(None, description="left, top, width, height in pixels")
    word: str | None = Field(None, min_length=1, max_length=40, description="its letters are the hole")

    @field_validator("mask", mode="before")
    @classmethod
    def _as_hole(cls, value: Any) -> Any:
        if value is None:
            return None
        mask = np.asarray(value)
        if mask.ndim != 2 or mask.dtype not in (np.bool_, np.uint8):
            raise ValueError(f"mask is {mask.dtype} {list(mask.shape)}; give bool or uint8 [H,W]")
        return mask if mask.dtype == np.bool_ else mask >= 128

    @property
    def num_given(self) -> int:
        return sum(value is not None for value in (self.mask, self.box, self.word))

    def check(self, shape: tuple[int, int, int]) -> None:
        if self.num_given:
            self.hole(*shape[1:])

    def hole(self, height: int, width: int) -> np.ndarray:
        """bool [H,W]. Raises CmrayError where it does not fit into images of this size, or is empty or everything."""
        if self.mask is not None:
            if self.mask.shape != (height, width):
                found = "x".join(map(str, self.mask.shape))
                raise CmrayError(f"the mask is {found} pixels (H x W), the images are {height}x{width}")
            hole, what = self.mask, "the mask"
        elif self.box is not None:
            hole, what = _boxed(self.box, height, width), f"box {','.join(map(str, self.box))}"
        else:
            hole, what = drawn(self.word or "", height, width), f"word '{self.word}'"
        if not hole.any() or hole.all():
            far = "leaves no hole" if not hole.any() else "covers everything"
            raise CmrayError(f"{what} {far} in images of {height}x{width}; some pixels must be known and some not")
        return hole


def _boxed(box: tuple[int, int, int, int], height: int, width: int) -> np.ndarray:
    left, top, wide, high = box
    if left < 0 or top < 0 or wide < 1 or high < 1 or left + wide > width or top + high > height:
        raise CmrayError(
            f"box {','.join(map(str, box))} (left, top, width, height) does not lie in images of {width} x {height}"
        )
    hole = np.zeros((height, width), np.bool_)
    hole[top : top + high, left : left + wide] = True
    return hole


def drawn(word: str, height: int, width: int) -> np.ndarray:
    """The letters of a word in DejaVu Sans Bold, as large as fits, bool [H,W]."""
    from pathlib import Path

    import matplotlib
    from PIL import Image, ImageDraw, ImageFont

    file = Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans-Bold.ttf"
    font = ImageFont.truetype(str(file), 256)

    def shape(letter: str) -> bytes:
        cell = Image.new("L", (512, 512))
        ImageDraw.Draw(cell).text((64, 64), letter, fill=255, font=font)
        return cell.tobytes()

    unknown = shape(chr(0x10FFFF))  # what stands for every letter that the font has not
    for letter in word:
        if shape(letter) == unknown:
            raise CmrayError(f"the font has no letter '{letter}'; a word is drawn in DejaVu Sans")
    left, top, right, bottom = font.getbbox(word)
    if right <= left or bottom <= top:
        return np.zeros((height, width), np.bool_)
    ink = Image.new("L", (int(right - left), int(bottom - top)), 0)
    ImageDraw.Draw(ink).text((-left, -top), word, fill=255, font=font)
    fine = (width * _FINER, height * _FINER)
    scale = min(fine[0] / ink.width, fine[1] / ink.height)
    ink = ink.resize((max(1, int(ink.width * scale)), max(1, int(ink.height * scale))), Image.Resampling.BILINEAR)
    canvas = Image.new("L", fine, 0)
    canvas.paste(ink, ((fine[0] - ink.width) // 2, (fine[1] - ink.height) // 2))
    return np.asarray(canvas.resize((width, height), Image.Resampling.BOX)) >= 255 * _COVERED
