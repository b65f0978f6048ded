"""Samples for the tests of measures."""

import numpy as np

from cmray.metrics.measures.base import Sample
from cmray.metrics.statistics import FeatureStatistics, merged


def blocks_of(rows, blocks):
    out = []
    for part in np.array_split(np.asarray(rows, dtype=np.float64), blocks):
        statistics = FeatureStatistics(rows.shape[1])
        statistics.update(part)
        out.append(statistics)
    return out


def sample(features, probabilities=None, spatial=None, blocks=4):
    """A Sample with everything that is given, its features in float32."""
    features = np.asarray(features, dtype=np.float32)
    parts = blocks_of(features, blocks)
    more = {}
    if probabilities is not None:
        more["probabilities"] = np.asarray(probabilities, dtype=np.float32)
    if spatial is not None:
        more["spatial_blocks"] = blocks_of(spatial, blocks)
        more["spatial"] = merged(more["spatial_blocks"])
    return Sample(len(features), parts, merged(parts), features=features, **more)


def softmax(logits):
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    return p / p.sum(axis=1, keepdims=True)
