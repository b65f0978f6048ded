"""Asynchronous successive halving: at each rung the best fraction of the trials seen there goes on."""

from __future__ import annotations

import math
from collections.abc import Mapping

from pydantic import Field

from cmray.stopping.base import Curve, StoppingConfig, Verdict, stopping_rules


@stopping_rules.register("asha")
class AshaConfig(StoppingConfig):
    """The rungs are at grace * reduction^k training steps, k = 0, 1, ... Of n values known at a rung, that of the trial
    itself included, the best ceil(n / reduction) go on; whoever equals the last of those does too.

    No trial waits for another, so a trial is judged against those that came to the rung before it.

    Source: Li et al., A System for Massively Parallel Hyperparameter Tuning, 2020 (arXiv 1810.05934), in the form
    that stops trials instead of pausing them.
    """

    reduction: int = Field(default=4, ge=2, description="one in so many goes on at each rung")

    def looks(self, steps: int, every: int) -> list[int]:
        rungs = []
        rung = self.grace
        while rung < steps:
            rungs.append(rung)
            rung *= self.reduction
        return rungs

    def check(self, steps: int, every: int) -> None:
        super().check(steps, every)
        if self.grace % every:
            shown = ", ".join(f"{rung:,}" for rung in self.looks(steps, every)[:3])
            raise ValueError(
                f"stopping.grace {self.grace} makes rungs at {shown}, but curve.every is {every}, so there is no value "
                f"at the first of them; stopping.grace must be a multiple of curve.every"
            )

    def verdict(self, step: int, own: Curve, others: Mapping[str, Curve]) -> Verdict:
        value = own[step]
        known = sorted([_or_infinity(value), *(_or_infinity(c[step]) for c in others.values() if step in c)])
        limit = known[math.ceil(len(known) / self.reduction) - 1]
        goes_on = math.isfinite(value) and value <= limit
        return Verdict(goes_on, limit if len(known) > 1 and math.isfinite(limit) else None, len(known))


def _or_infinity(value: float) -> float:
    return value if math.isfinite(value) else math.inf
