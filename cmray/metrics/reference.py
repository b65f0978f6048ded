"""Feature statistics of a whole dataset, the side every Fréchet distance is measured against."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from cmray.metrics.extractors import Extractor
from cmray.metrics.statistics import FeatureStatistics


def reference_statistics(extractor: Extractor, images: Tensor | np.ndarray, block: int = 256) -> FeatureStatistics:
    """Statistics of `images`, uint8 [N, C, H, W], extracted in blocks of `block` from first to last.

    The blocks and their order are fixed, so one machine gives the same bits and `sha256` each time. Another
    processor's convolutions may round differently: compute a reference once and carry it to where it is
    needed.

    Raises:
        ValueError: block < 1.
        DataError: no images, not uint8 [N, C, H, W], or a shape the extractor does not take.
    """
    if block < 1:
        raise ValueError(f"block must be at least 1, not {block}")
    images = torch.as_tensor(images)
    extractor.check_images(images)
    statistics = FeatureStatistics(extractor.dim)
    for part in images.split(block):
        statistics.update(extractor(part))
    return statistics
