"""Images in memory, and the registry of datasets that can be prepared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from cmray.core.registry import ComponentConfig, Registry
from cmray.datasets.manifest import ContentDigest, Levels

if TYPE_CHECKING:
    from cmray.datasets.source import ImageSource

datasets: Registry[Any] = Registry("dataset", ["cmray.datasets"])


@dataclass(frozen=True)
class Usual:
    """What a dataset is in its usual form, known before it is there.

    Args:
        shape: (C, H, W) of its images.
        classes: how many there are, 0 without labels.
        count: of its images for training, about.
    """

    shape: tuple[int, int, int]
    classes: int
    count: int


class DatasetConfig(ComponentConfig):
    """A dataset that `cmray data prepare NAME` knows."""

    #: None for a kind of source that could hold anything
    usual: ClassVar[Usual | None] = None
    #: whether `cmray data prepare` fetches it unless it is given a source
    downloads: ClassVar[bool] = False

    #: whether it comes with cmray and needs no files of the user
    embedded: ClassVar[bool] = False
    #: fields of ImageRule in which this dataset's usual form differs from the defaults
    usual_rule: ClassVar[dict[str, Any]] = {}

    def rule_for(self, source: ImageSource) -> dict[str, Any]:
        """`usual_rule` for what was opened."""
        return self.usual_rule

    def open(self) -> ImageSource:
        """Its images, ready to be read. Raises DataError when they are not there."""
        raise TypeError(f"{type(self).__name__} does not define open")


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
        """SHA-256 of shape, classes, pixels and labels in order: the same wherever and however it is stored."""
        digest = ContentDigest(self.shape, self.classes)
        digest.update(self.images, self.labels)
        return digest.hexdigest()

    def mean_std(self) -> tuple[float, float]:
        """Mean and standard deviation of all values in [-1, 1], exact over the 256 levels."""
        levels = Levels(self.shape[0])
        levels.update(self.images)
        return levels.mean_std()
