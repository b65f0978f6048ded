"""Median stopping: a trial ends when its best value is worse than what the others had on average."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping

from pydantic import Field

from cmray.stopping.base import Curve, StoppingConfig, Verdict, stopping_rules


@stopping_rules.register("median")
class MedianConfig(StoppingConfig):
    """At each curve point s from `grace` on: a trial is stopped when the best of its values from `grace` to s is above
    the median, over the other trials whose curves reach s, of the mean of their values from `grace` to s.

    Source: Golovin et al., Google Vizier: A Service for Black-Box Optimization, 2017, section 3.2.2.
    """

    min_trials: int = Field(default=3, ge=1, description="other trials that must have come as far before any is judged")

    def looks(self, steps: int, every: int) -> list[int]:
        return list(range(-(-self.grace // every) * every, steps, every))

    def check(self, steps: int, every: int) -> None:
        super().check(steps, every)
        if not self.looks(steps, every):
            raise ValueError(
                f"stopping.grace {self.grace} leaves no curve point before the end: curve.every is {every} and "
                f"train.steps {steps}"
            )

    def verdict(self, step: int, own: Curve, others: Mapping[str, Curve]) -> Verdict:
        best = min(self._values(own, step))
        means = [statistics.fmean(self._values(c, step)) for c in others.values() if max(c, default=0) >= step]
        if len(means) < self.min_trials:
            return Verdict(True, None, len(means) + 1)
        limit = statistics.median(means)
        return Verdict(best <= limit, limit if math.isfinite(limit) else None, len(means) + 1)

    def _values(self, curve: Curve, step: int) -> list[float]:
        """The values from grace to `step`; what is not finite counts as infinite."""
        found = [value if math.isfinite(value) else math.inf for at, value in curve.items() if self.grace <= at <= step]
        return found or [math.inf]
