"""Peak signal-to-noise ratio."""

from __future__ import annotations

import numpy as np


def psnr(a: np.ndarray, b: np.ndarray) -> float | None:
    """10 log10(255^2 / mean (a - b)^2) in dB for two uint8 images of one shape; None where they are equal."""
    error = float(np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2))
    return float(10 * np.log10(255**2 / error)) if error else None
