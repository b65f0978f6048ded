"""Images in memory, and the registry of datasets that can be prepared."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from cmray.core.registry import ComponentConfig, Registry

datasets: Registry[Any] = Registry("dataset", ["cmray.datasets"])


class DatasetConfig(ComponentConfig):
    """A dataset that `cmray data prepare NAME` knows."""

    def load(self) -> ImageDataset:
        """The whole dataset. Raises DataError when its source is missing."""
        raise TypeError(f"{type(self).__name__} does not define load")


@dataclass(frozen=True)
class ImageDataset:
    """Images with labels.

    Args:
        name, split, source: where they come from, for people.
        images: uint8 [N, C, H, W].
        labels: int64 [N] in [0, len(classes)), or None.
        classes: class names in label order, empty without labels.
    """

    name: str
    split: str
    source: str
    images: np.ndarray
    labels: np.ndarray | None
    classes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.images)

    @property
    def shape(self) -> tuple[int, int, int]:
        _, c, h, w = self.images.shape
        return c, h, w

    def digest(self) -> str:
        """SHA-256 of shape, pixels and labels in order: the same wherever and however it is stored."""
        h = hashlib.sha256(repr((self.images.shape, self.classes)).encode())
        h.update(np.ascontiguousarray(self.images).data)
        if self.labels is not None:
            h.update(np.ascontiguousarray(self.labels, dtype=np.int64).data)
        return h.hexdigest()

    def mean_std(self) -> tuple[float, float]:
        """Mean and standard deviation of all values in [-1, 1], exact over the 256 levels."""
        counts = np.zeros(256)
        for image_block in np.array_split(self.images, max(1, self.images.nbytes >> 24)):  # bincount makes int64 copies
            counts += np.bincount(image_block.reshape(-1), minlength=256)
        values = np.arange(256) / 127.5 - 1
        mean = float((counts * values).sum() / counts.sum())
        return mean, float(np.sqrt((counts * (values - mean) ** 2).sum() / counts.sum()))
