"""How much of a Fréchet distance is a shift of the mean."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import numpy as np

from cmray.metrics.measures.base import Estimate, MeasureConfig, Sample, measures


@measures.register("mean-shift")
class MeanShift(MeasureConfig):
    """|mu1 - mu2|^2, the first term of the Fréchet distance; what is left of that is about spread and shape.

    The interval is the infinitesimal jackknife over blocks of seeds: with g = 2 (mu1 - mu2), block b of n_b images
    moves the value by L_b = g.(sum_b x - n_b mu1) / n, and error^2 = B / (B - 1) sum_b L_b^2. The reference is held
    fixed. At n images the value is too large by tr S1 / n on average.
    """

    title: ClassVar[str] = "mean shift"
    better: ClassVar[Literal["lower", "higher"]] = "lower"

    def estimate(self, sample: Sample, reference: Sample | None, seed: int) -> Estimate:
        there = self.against(sample, reference).statistics.mean
        here = sample.statistics.mean
        value = float(np.square(here - there).sum())
        count = len(sample.blocks)
        if count < 2:
            return Estimate(value, note="no interval: one block of seeds")
        g = 2 * (here - there)
        moves = [g @ (block.sum - block.n * here) / sample.n for block in sample.blocks]
        error = math.sqrt(count / (count - 1) * float(np.square(moves).sum()))
        return Estimate.student(value, error, count - 1, least=0.0)
