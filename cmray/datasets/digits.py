"""scikit-learn's digits: 1,797 real 8x8 grayscale images that need no download. The embedded default."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from cmray.datasets.base import DatasetConfig, datasets
from cmray.datasets.source import ArraySource


@datasets.register("digits")
class Digits(DatasetConfig):
    """Optical recognition of handwritten digits (UCI, test part), as shipped by scikit-learn."""

    embedded: ClassVar[bool] = True

    def open(self) -> ArraySource:
        levels, labels = _levels()
        # levels 0..16 -> 0..255
        images = np.rint(levels * (255 / 16)).astype(np.uint8)[:, None]
        return ArraySource(
            name="digits",
            split="all",
            origin="scikit-learn load_digits (UCI optical digits)",
            classes=tuple(str(i) for i in range(10)),
            images=images,
            labels=labels.astype(np.int64),
        )


def _levels() -> tuple[np.ndarray, np.ndarray]:
    """Levels [n, 8, 8], 0 to 16, and labels [n]: `load_digits`, without the second that its import takes."""
    import gzip
    from importlib.util import find_spec

    spec = find_spec("sklearn")
    file = Path(next(iter(spec.submodule_search_locations or ()), "") if spec else "") / "datasets/data/digits.csv.gz"
    if file.is_file():
        with gzip.open(file, "rt") as lines:
            rows = np.loadtxt(lines, delimiter=",")
        return rows[:, :-1].reshape(-1, 8, 8), rows[:, -1]
    from sklearn.datasets import load_digits

    raw: Any = load_digits()
    return raw.images, raw.target
