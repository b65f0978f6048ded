"""Improved consistency training (Song & Dhariwal 2023): consistency training with other choices everywhere."""

from __future__ import annotations

from pydantic import Field

from cmray.core.curricula import MuField, NumSigmasField
from cmray.core.distances import DistanceField
from cmray.core.times import TimesField
from cmray.core.weights import WeightName
from cmray.objectives.base import objectives
from cmray.objectives.ct import CTConfig


@objectives.register("ict")
class ICTConfig(CTConfig):
    """Pseudo-Huber on the norm of the image, lognormal draws of intervals, N that doubles, weight 1/dt, no target EMA.

    Each default is one of the paper's improvements (Table 1); any can be set back to see what it does.
    """

    num_sigmas: NumSigmasField = "doubling"  # type: ignore[valid-type]
    mu: MuField = 0.0  # type: ignore[valid-type]
    distance: DistanceField = "pseudo-huber"  # type: ignore[valid-type]
    weight: WeightName = Field("1/dt", description="lambda of a pair; 1/dt is one over sigma_hi - sigma_lo")
    times: TimesField = "lognormal"  # type: ignore[valid-type]
