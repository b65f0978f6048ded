"""Kernel Inception Distance: the maximum mean discrepancy under a cubic kernel."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from cmray.core.errors import DataError
from cmray.core.rng import numpy_generator
from cmray.metrics.measures.base import Estimate, MeasureConfig, Sample, measures


def mmd2(x: np.ndarray, y: np.ndarray) -> float:
    """The unbiased estimate of MMD^2 (Gretton et al., 2012, Eq. 3) with k(a, b) = (a.b / D + 1)^3.

    Args:
        x, y: float64 [m, D], m >= 2.
    """
    m, dim = x.shape

    def off_diagonal(a: np.ndarray) -> float:
        gram = (a @ a.T / dim + 1) ** 3
        return (gram.sum() - np.trace(gram)) / (m * (m - 1))

    return float(off_diagonal(x) + off_diagonal(y) - 2 * ((x @ y.T / dim + 1) ** 3).mean())


@measures.register("kid")
class KernelDistance(MeasureConfig):
    """The mean over random subsets of the unbiased MMD^2 with k(x, y) = (x.y / D + 1)^3   (Binkowski et al., 2018).

    Unbiased at every n: 0 on average for equal distributions, so single values may be below 0. Not multiplied
    by anything; papers often print 1000 times it.

    Subsets share images, so their spread s alone says too little. With r = subset_size / n of the smaller side,
    s^2 estimates (1 - r) of the variance of one subset, and the mean keeps r of that variance however many
    subsets there are (first order of a U-statistic's variance): error^2 = s^2 (r / (1 - r) + 1 / subsets).
    The interval covers the sampling of both sides. There is none where a subset is a whole side.
    """

    title: ClassVar[str] = "kernel distance (KID)"
    better: ClassVar[Literal["lower", "higher"]] = "lower"
    needs: ClassVar[frozenset[str]] = frozenset({"features"})

    subset_size: int = Field(1000, ge=2, description="images of each side in a subset, drawn without replacement")
    subsets: int = Field(100, ge=2, description="random subsets whose mean is taken")

    def estimate(self, sample: Sample, reference: Sample | None, seed: int) -> Estimate:
        other = self.against(sample, reference)
        x, y = self.array(sample, "features", "sample"), self.array(other, "features", "reference")
        if min(len(x), len(y)) < self.subset_size:
            found = f"the sample has {len(x)} and the reference {len(y)}"
            raise DataError(f"{self.name}: subset_size={self.subset_size} needs as many images on each side; {found}")
        values = []
        for number in range(self.subsets):
            generator = numpy_generator(self.name, seed, number)
            rows = [generator.choice(len(side), self.subset_size, replace=False) for side in (x, y)]
            values.append(mmd2(x[rows[0]].astype(np.float64), y[rows[1]].astype(np.float64)))
        value, share = float(np.mean(values)), self.subset_size / min(len(x), len(y))
        if share == 1:
            return Estimate(value, note="no interval: subset_size is all images of a side")
        error = float(np.std(values, ddof=1)) * math.sqrt(share / (1 - share) + 1 / self.subsets)
        return Estimate.student(value, error, self.subsets - 1)
