"""What a measure is given, what it returns, and the registry that finds it by name."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import ClassVar, Literal

import numpy as np

from cmray.core.errors import DataError
from cmray.core.registry import ComponentConfig, Registry
from cmray.metrics.statistics import FeatureStatistics


@dataclass(frozen=True, eq=False)
class Sample:
    """One side of a comparison: what an extractor said about n images. Compared and hashed by identity.

    Args:
        n: how many images.
        blocks: statistics of the features per block of seeds, in order of the seeds; at least one.
        statistics: the blocks merged.
        features: float32 [n, D], or None where they were not kept.
        probabilities: float32 [n, C], the softmax of the extractor's classifier, or None.
        spatial_blocks, spatial: as `blocks` and `statistics`, of spatial features, or None.

    Raises:
        ValueError: a part that is not of n images.
    """

    n: int
    blocks: Sequence[FeatureStatistics]
    statistics: FeatureStatistics
    features: np.ndarray | None = None
    probabilities: np.ndarray | None = None
    spatial_blocks: Sequence[FeatureStatistics] | None = None
    spatial: FeatureStatistics | None = None

    def __post_init__(self) -> None:
        counts = {"statistics": self.statistics.n, "blocks": sum(block.n for block in self.blocks)}
        counts |= {
            name: len(rows) for name in ("features", "probabilities") if (rows := getattr(self, name)) is not None
        }
        if self.spatial is not None:
            counts |= {"spatial": self.spatial.n, "spatial_blocks": sum(b.n for b in self.spatial_blocks or ())}
        for part, count in counts.items():
            if count != self.n:
                raise ValueError(f"a sample of {self.n} images has {part} of {count}")


@dataclass(frozen=True)
class Estimate:
    """A measured value, its 95% interval [low, high] and standard error where there is one, and what to know."""

    value: float
    low: float | None = None
    high: float | None = None
    error: float | None = None
    note: str = ""

    @classmethod
    def student(cls, value: float, error: float, freedom: int, note: str = "", least: float = -math.inf) -> Estimate:
        """value +- t error, with Student's t for an error of so many degrees of freedom.

        Args:
            least: the smallest value the measure can have, where the interval is cut off.
        """
        from scipy.special import stdtrit  # a third of a second that most commands do without

        reach = float(stdtrit(freedom, 0.975)) * error
        return cls(value, max(value - reach, least), value + reach, error, note)

    @classmethod
    def share(cls, value: float, error: float, n: int, note: str = "") -> Estimate:
        """A share in [0, 1] and its standard error, with the score interval of Wilson (1927), which stays in [0, 1].

        The interval is that of as many independent draws as would have this error; of `n`, for an error of 0 or a
        share of 0 or 1.
        """
        inside = value * (1 - value)
        draws = inside / error**2 if error > 0 and inside > 0 else n
        z2 = NormalDist().inv_cdf(0.975) ** 2
        middle = (value + z2 / (2 * draws)) / (1 + z2 / draws)
        reach = math.sqrt(z2 * (inside / draws + z2 / (4 * draws**2))) / (1 + z2 / draws)
        return cls(value, max(0.0, min(middle - reach, value)), min(1.0, max(middle + reach, value)), error, note)


class MeasureConfig(ComponentConfig):
    """A measure and its options.

    Class attributes:
        title: how tables call it.
        better: whether lower or higher values are better.
        needs: what a Sample must hold besides the statistics of features.
        needs_reference: whether it compares with a reference at all.
    """

    title: ClassVar[str]
    better: ClassVar[Literal["lower", "higher"]]
    needs: ClassVar[frozenset[str]] = frozenset()
    needs_reference: ClassVar[bool] = True

    def estimate(self, sample: Sample, reference: Sample | None, seed: int) -> Estimate:
        """The measure of `sample` against `reference`, a function of the arguments alone.

        Raises:
            DataError: something is missing from a side, or a side has too few images for the options.
        """
        raise TypeError(f"{type(self).__name__} does not define estimate")

    def against(self, sample: Sample, reference: Sample | None) -> Sample:
        """The reference. Raises DataError without one, for features of another length, and for 1 image on a side."""
        if reference is None:
            raise DataError(f"{self.name}: a reference is needed, there is none")
        if sample.statistics.dim != reference.statistics.dim:
            found = f"{sample.statistics.dim}-d features in the sample, {reference.statistics.dim}-d in the reference"
            raise DataError(f"{self.name}: {found}; both must come from one extractor")
        if min(sample.n, reference.n) < 2:
            found = f"the sample has {sample.n}, the reference {reference.n}"
            raise DataError(f"{self.name}: at least 2 images a side are needed; {found}")
        return reference

    def array(self, side: Sample, part: Literal["features", "probabilities"], called: str) -> np.ndarray:
        """That part of a side, float32 [n, ...]. Raises DataError when that side has none."""
        rows = getattr(side, part)
        if rows is None:
            raise DataError(
                f"{self.name}: the {called} has no {part}; its extractor must give them, and they must be kept"
            )
        return rows


measures: Registry[MeasureConfig] = Registry("measure", ["cmray.metrics.measures"])
