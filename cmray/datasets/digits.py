"""The digits of scikit-learn: 1,797 real 8x8 grayscale images that need no download. The embedded default."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from cmray.datasets.base import DatasetConfig, datasets
from cmray.datasets.source import ArraySource


@datasets.register("digits")
class Digits(DatasetConfig):
    """Optical recognition of handwritten digits (UCI, test part), as shipped by scikit-learn."""

    embedded: ClassVar[bool] = True

    def open(self) -> ArraySource:
        from sklearn.datasets import load_digits

        raw: Any = load_digits()
        # levels 0..16 -> 0..255
        images = np.rint(raw.images * (255 / 16)).astype(np.uint8)[:, None]
        return ArraySource(
            name="digits",
            split="all",
            origin="scikit-learn load_digits (UCI optical digits)",
            classes=tuple(str(i) for i in range(10)),
            images=images,
            labels=raw.target.astype(np.int64),
        )
