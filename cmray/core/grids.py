"""Grids of noise levels."""

from __future__ import annotations

import numpy as np


def karras_sigmas(num_sigmas: int, sigma_min: float, sigma_max: float, rho: float = 7.0) -> np.ndarray:
    """Ascending Karras grid t_1 < ... < t_N with t_1 = sigma_min and t_N = sigma_max exactly.

    t_i = (sigma_min^(1/rho) + (i-1)/(N-1) (sigma_max^(1/rho) - sigma_min^(1/rho)))^rho   (Consistency Models, Sec. 5)

    Args:
        num_sigmas: N >= 2, the number of points; intervals are one fewer.
        sigma_min, sigma_max: 0 < sigma_min < sigma_max.
        rho: > 0; 7 in the paper.

    Returns:
        float64 array [N].

    Raises:
        ValueError: when a bound above does not hold.
    """
    if num_sigmas < 2:
        raise ValueError(f"num_sigmas is {num_sigmas}; a grid needs at least 2 points")
    if not 0 < sigma_min < sigma_max:
        raise ValueError(f"sigma_min {sigma_min} and sigma_max {sigma_max} must satisfy 0 < sigma_min < sigma_max")
    if rho <= 0:
        raise ValueError(f"rho is {rho}; it must be positive")
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    sigmas = (low + np.arange(num_sigmas) / (num_sigmas - 1) * (high - low)) ** rho
    sigmas[0], sigmas[-1] = sigma_min, sigma_max
    return sigmas
