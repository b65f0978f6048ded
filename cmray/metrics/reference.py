"""Feature statistics of a whole dataset, the side every Fréchet distance is measured against."""

from __future__ import annotations

import warnings
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from cmray.core.errors import DataError
from cmray.metrics.extractors import Extractor
from cmray.metrics.statistics import FeatureStatistics


def reference_statistics(
    extractor: Extractor, images: Tensor | np.ndarray | Iterable[np.ndarray], block: int = 256
) -> FeatureStatistics:
    """Statistics of `images`, uint8 [N, C, H, W], extracted in blocks of `block` from first to last.

    Images may come whole or in parts of any sizes: it makes no difference to the result. The blocks and their
    order are fixed, so one machine gives the same bits and `sha256` each time. Another processor's convolutions
    may round differently: compute a reference once and carry it to where it is needed.

    Raises:
        ValueError: block < 1.
        DataError: no images, not uint8 [N, C, H, W], or a shape the extractor does not take.
    """
    if block < 1:
        raise ValueError(f"block must be at least 1, not {block}")
    statistics = FeatureStatistics(extractor.dim)
    parts = [images] if isinstance(images, Tensor | np.ndarray) else images
    left: Tensor | None = None
    for part in parts:
        with warnings.catch_warnings():
            # data may be shared memory that must not be written; here it is only read
            warnings.filterwarnings("ignore", message="The given NumPy array is not writ")
            tensor = torch.as_tensor(part)
        extractor.check_images(tensor)
        tensor = tensor if left is None else torch.cat([left, tensor])
        whole = len(tensor) // block * block
        for group in tensor[:whole].split(block) if whole else ():
            statistics.update(extractor(group))
        left = tensor[whole:] if whole < len(tensor) else None
    if left is not None:
        statistics.update(extractor(left))
    if not statistics.n:
        raise DataError("a reference needs images, there are none")
    return statistics
