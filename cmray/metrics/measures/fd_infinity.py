"""The Fréchet distance that infinitely many samples would have."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from cmray.core.errors import DataError
from cmray.core.rng import numpy_generator
from cmray.metrics.frechet import covariance_root, frechet_distance
from cmray.metrics.measures.base import Estimate, MeasureConfig, Sample, measures
from cmray.metrics.measures.fd import frechet_error
from cmray.metrics.statistics import FeatureStatistics, merged


def line(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Intercept of the least-squares line through (x, y), [P] each, P >= 3, and its standard error."""
    design = np.stack([np.ones_like(x), x], axis=1)
    inverse = np.linalg.inv(design.T @ design)
    coefficients = inverse @ design.T @ y
    variance = np.square(y - design @ coefficients).sum() / (len(x) - 2)
    return float(coefficients[0]), math.sqrt(variance * inverse[0, 0])


def full_blocks(blocks: Sequence[FeatureStatistics]) -> list[FeatureStatistics]:
    """The blocks, a last one of less than half the size joined to the one before: a group of a few images would be far
    out on the axis of 1 / n, and decide the line."""
    if len(blocks) > 1 and 2 * blocks[-1].n < blocks[0].n:
        return [*blocks[:-2], merged(blocks[-2:])]
    return list(blocks)


@measures.register("fd-infinity")
class FrechetDistanceAtInfinity(MeasureConfig):
    """The intercept of the line FD(n) = FD_inf + c / n through distances at several n   (Chong and Forsyth, 2020).

    For g = 1 .. points the blocks, in a seeded order, are dealt into g disjoint groups; the mean distance of the
    groups is the distance at n / g. All points use every image once, so noise that is linear in the images is
    the same in all of them and stays in the intercept as it is in FD(n); the standard error adds the line's own
    to it. The bias from the finite reference stays. The value may come out below 0 where the truth is near it.
    """

    title: ClassVar[str] = "Fréchet distance at n = infinity"
    better: ClassVar[Literal["lower", "higher"]] = "lower"

    points: int = Field(
        5, ge=3, le=20, description="through how many numbers of images the line goes, at most the number of blocks"
    )

    def estimate(self, sample: Sample, reference: Sample | None, seed: int) -> Estimate:
        other = self.against(sample, reference).statistics
        blocks = full_blocks(sample.blocks)
        if len(blocks) < self.points:
            raise DataError(
                f"{self.name}: points={self.points} needs as many blocks of images; the sample has {len(blocks)}"
            )
        order = numpy_generator(self.name, seed).permutation(len(blocks))
        root = covariance_root(other)
        x, y, smallest = [], [], sample.n
        for count in range(1, self.points + 1):
            groups = [merged([blocks[i] for i in part]) for part in np.array_split(order, count)]
            smallest = min(smallest, *(group.n for group in groups))
            if smallest < 2:
                raise DataError(f"{self.name}: points={self.points} leaves 1 image in a group; take fewer points")
            x.append(np.mean([1 / group.n for group in groups]))
            y.append(np.mean([frechet_distance(group, other, root) for group in groups]))
        value, fit = line(np.array(x), np.array(y))
        noise = frechet_error(sample.blocks, sample.statistics, other, root) or 0.0
        note = f"n={smallest:,} to {sample.n:,}"
        if smallest <= other.dim:
            note += f"; not straight: groups are smaller than the {other.dim:,} features"
        return Estimate.student(value, math.hypot(noise, fit), len(sample.blocks) - 1, note)
