"""Improved precision: how many generated images look like real ones."""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np
from pydantic import Field

from cmray.metrics.measures.base import Estimate, Sample, measures
from cmray.metrics.measures.neighbours import NeighbourMeasure, in_balls, radii_squared


@measures.register("precision")
class Precision(NeighbourMeasure):
    """The share of generated images within the k-NN ball of some real image   (Kynkäänniemi et al., 2019, Eq. 1-2).

    The ball around a real image reaches to its k-th nearest real image, surface included. Balls shrink as n
    grows: only numbers of equal n of both sides compare. The interval is over generated images, with the
    reference fixed.
    """

    title: ClassVar[str] = "precision"

    k: int = Field(3, ge=1, description="the neighbour that a ball reaches to; 3 in the paper")

    def estimate(self, sample: Sample, reference: Sample | None, seed: int) -> Estimate:
        other, generated, real = self.sides(sample, reference)
        radii = radii_squared(other, real, self.k, self.name, "reference")
        held, _ = in_balls(generated, real, radii, closed=True)
        value, n = float(np.count_nonzero(held) / len(generated)), len(generated)
        return Estimate.share(value, math.sqrt(value * (1 - value) / n), n)
