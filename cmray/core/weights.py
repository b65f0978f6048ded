"""Loss weights lambda(sigma)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor

#: weights that a single noise level has
DenoisingWeightName = Literal["uniform", "snr", "snr+1", "truncated-snr", "karras"]
#: ... and those that need the distance of two
WeightName = Literal["uniform", "snr", "snr+1", "truncated-snr", "karras", "1/dt"]


def weight(name: WeightName, sigma: Tensor, sigma_data: float, dt: Tensor | None = None) -> Tensor:
    """lambda(sigma) > 0, the shape of sigma.

    uniform: 1. snr: 1/sigma^2. snr+1: 1/sigma^2 + 1. truncated-snr: max(1/sigma^2, 1).
    karras: 1/sigma^2 + 1/sigma_data^2 = (sigma^2 + sigma_data^2)/(sigma sigma_data)^2   (EDM, Table 1).
    1/dt: 1/(sigma_hi - sigma_lo)   (Improved Techniques for Training Consistency Models, Sec. 3.1); needs `dt`.

    Raises:
        ValueError: 1/dt without `dt`, or an unknown name.
    """
    if name == "1/dt":
        if dt is None:
            raise ValueError("weight 1/dt needs the step sizes of a discrete objective")
        return 1 / dt
    formulas: dict[str, Callable[[], Tensor]] = {
        "uniform": lambda: torch.ones_like(sigma),
        "snr": lambda: sigma**-2,
        "snr+1": lambda: sigma**-2 + 1,
        "truncated-snr": lambda: (sigma**-2).clamp(min=1),
        "karras": lambda: sigma**-2 + sigma_data**-2,
    }
    if name not in formulas:
        raise ValueError(f"unknown weight {name!r}; allowed: {', '.join(get_args(WeightName))}")
    return formulas[name]()
