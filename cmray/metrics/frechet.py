"""The Fréchet distance between two Gaussians."""

from __future__ import annotations

import numpy as np

from cmray.metrics.statistics import FeatureStatistics


def frechet_distance(a: FeatureStatistics, b: FeatureStatistics) -> float:
    """d^2 = |mu1 - mu2|^2 + tr S1 + tr S2 - 2 tr (S1^(1/2) S2 S1^(1/2))^(1/2), at least 0.

    The squared 2-Wasserstein distance of the Gaussians with the means and covariances of `a` and `b` (Dowson
    and Landau, 1982), used on features of images by Heusel et al., 2017. S1^(1/2) S2 S1^(1/2) is symmetric,
    so its eigenvalues give the last trace without the square root of a non-symmetric matrix; that stays exact
    for singular covariances, which a few samples of many features have.

    It is biased upwards for finite n, so only numbers of the same n compare. With Inception features and the
    rest of that protocol it is FID; with any other extractor it is fd/<extractor>.

    Raises:
        ValueError: different feature dimensions, or fewer than 2 samples on a side.
    """
    if a.dim != b.dim:
        raise ValueError(f"cannot compare statistics of {a.dim}-d and {b.dim}-d features")
    if a.n < 2 or b.n < 2:
        raise ValueError(f"a Fréchet distance needs at least 2 samples a side, there are {a.n} and {b.n}")
    s1, s2 = a.covariance, b.covariance
    values, vectors = np.linalg.eigh(s1)
    h = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    product = h @ s2 @ h
    # Eigenvalues that are 0 come out as tiny negatives.
    root_trace = np.sqrt(np.linalg.eigvalsh((product + product.T) / 2).clip(min=0)).sum()
    d2 = np.square(a.mean - b.mean).sum() + np.trace(s1) + np.trace(s2) - 2 * root_trace
    return max(float(d2), 0.0)
