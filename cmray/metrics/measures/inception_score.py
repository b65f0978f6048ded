"""Inception Score: how sure a classifier is of each image, and how many classes there are in all."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from cmray.core.errors import DataError
from cmray.metrics.measures.base import Estimate, MeasureConfig, Sample, measures


def score(p: np.ndarray) -> float:
    """exp(E_x KL(p(y|x) || p(y))), p(y) the mean of p(y|x); p float64 [n, C], rows sum to 1. In [1, C]."""
    marginal = p.mean(axis=0)
    from scipy.special import xlogy

    return math.exp(xlogy(p, p).sum(axis=1).mean() - xlogy(marginal, marginal).sum())


@measures.register("is")
class InceptionScore(MeasureConfig):
    """The mean over splits of exp(E_x KL(p(y|x) || p(y)))   (Salimans et al., 2016, with 10 splits).

    It knows no reference. It is the Inception Score with the classifier of that paper only; with another one it
    says the same of that one's classes. Papers print mean and standard deviation over splits: the note has the
    latter, and the error is the mean's own. A finite split is biased downwards.
    """

    title: ClassVar[str] = "Inception Score"
    better: ClassVar[Literal["lower", "higher"]] = "higher"
    needs: ClassVar[frozenset[str]] = frozenset({"probabilities"})
    needs_reference: ClassVar[bool] = False

    splits: int = Field(10, ge=1, description="consecutive parts of the sample, of equal sizes up to one image")

    def estimate(self, sample: Sample, reference: Sample | None, seed: int) -> Estimate:
        p = self.array(sample, "probabilities", "sample")
        if len(p) < self.splits:
            raise DataError(f"{self.name}: splits={self.splits} needs as many images; the sample has {len(p)}")
        off = np.abs(p.sum(axis=1, dtype=np.float64) - 1) if p.min() >= 0 else np.array([np.inf])
        if not off.max() < 1e-3:
            raise DataError(f"{self.name}: probabilities of each image must be at least 0 and sum to 1; these do not")
        edges = [i * len(p) // self.splits for i in range(self.splits + 1)]
        values = [score(p[a:b].astype(np.float64)) for a, b in pairwise(edges)]
        value = float(np.mean(values))
        if self.splits == 1:
            return Estimate(value)
        note = f"std over {self.splits} splits {np.std(values):.2g}"
        return Estimate.student(
            value, float(np.std(values, ddof=1)) / math.sqrt(self.splits), self.splits - 1, note, 1.0
        )
