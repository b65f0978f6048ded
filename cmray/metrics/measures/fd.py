"""The Fréchet distance of a sample from a reference, with an interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np

from cmray.core.protocol import FEW
from cmray.metrics.frechet import Root, covariance_root, frechet_distance, frechet_gradient
from cmray.metrics.measures.base import Estimate, MeasureConfig, Sample, measures
from cmray.metrics.statistics import FeatureStatistics, merged


def frechet_error(
    blocks: Sequence[FeatureStatistics], total: FeatureStatistics, reference: FeatureStatistics, root: Root
) -> float | None:
    """Standard error of the distance of `total` from a reference that is held fixed; None for a single block.

    The infinitesimal jackknife over blocks (Efron, 1982): with g and A the derivatives of d^2 by mean and
    covariance, block b with n_b of the n images moves the distance by

        L_b = g.(sum_b (x - mu)) / n + <A, sum_b (x - mu)(x - mu)^T - n_b (n - 1) / n S> / (n - 1)

    and error^2 = B / (B - 1) sum_b L_b^2. It needs one decomposition for any number of blocks, where leaving
    out blocks would need one each, and unlike that it holds for fewer images than features. Where the sample
    is nearly the reference itself it is too large, by a third or so, rather than too small.
    """
    if len(blocks) < 2:
        return None
    g, a = frechet_gradient(total, reference, root)
    n, mean = total.n, total.mean
    a_mean = a @ mean
    centred = float((a * total.covariance).sum()) / n
    moves = []
    for block in blocks:
        scatter = (a * block.outer).sum() - 2 * a_mean @ block.sum + block.n * (mean @ a_mean)
        moves.append(g @ (block.sum - block.n * mean) / n + scatter / (n - 1) - block.n * centred)
    return math.sqrt(len(blocks) / (len(blocks) - 1) * float(np.square(moves).sum()))


def bias_note(
    blocks: Sequence[FeatureStatistics],
    total: FeatureStatistics,
    reference: FeatureStatistics,
    root: Root,
    value: float,
) -> str:
    """What so few images do to the distance; empty from 10,000 on.

    The bias is c / n to first order (Chong and Forsyth, 2020), so two halves lie above the whole by as much as
    the whole lies above its limit. That takes halves with more images than features.
    """
    if total.n >= FEW:
        return ""
    halves = [merged(blocks[start::2]) for start in (0, 1)] if len(blocks) > 1 else []
    if not halves or min(half.n for half in halves) <= total.dim:
        return f"n={total.n:,}: biased upwards"
    above = np.mean([frechet_distance(half, reference, root) for half in halves]) - value
    return f"n={total.n:,}: biased upwards by about {max(float(above), 0.0):.2g}"


def frechet_estimate(
    blocks: Sequence[FeatureStatistics], total: FeatureStatistics, reference: FeatureStatistics
) -> Estimate:
    """d^2 of `total`, which is `blocks` merged, with its interval and a note where n is small."""
    root = covariance_root(reference)
    value = frechet_distance(total, reference, root)
    note = bias_note(blocks, total, reference, root, value)
    error = frechet_error(blocks, total, reference, root)
    if error is None:
        return Estimate(value, note=note)
    return Estimate.student(value, error, len(blocks) - 1, note, least=0.0)


@measures.register("fd")
class FrechetDistance(MeasureConfig):
    """d^2 = |mu1 - mu2|^2 + tr S1 + tr S2 - 2 tr (S1^(1/2) S2 S1^(1/2))^(1/2)   (Heusel et al., 2017).

    The interval says how far the distance of another sample of the same n might lie; the reference is held
    fixed, and the upward bias of a finite n, which samples of one n share, is not in it.
    """

    title: ClassVar[str] = "Fréchet distance"
    better: ClassVar[Literal["lower", "higher"]] = "lower"

    def estimate(self, sample: Sample, reference: Sample | None, seed: int) -> Estimate:
        other = self.against(sample, reference)
        return frechet_estimate(sample.blocks, sample.statistics, other.statistics)
