"""The Fréchet distance between two Gaussians, and how it changes with the statistics of one side."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg import eigh, get_lapack_funcs

from cmray.metrics.statistics import FeatureStatistics

_pstrf, _sygst = get_lapack_funcs(("pstrf", "sygst"), dtype=np.float64)


@dataclass(frozen=True)
class Root:
    """A factor of the covariance S of one side: S[order][:, order] = factor factor^T.

    Made once for a reference by `covariance_root`, it serves every sample that is compared with it.

    Args:
        order: int [D], a permutation of the features.
        factor: float64 [D, r], lower trapezoidal, r the rank.
    """

    order: np.ndarray
    factor: np.ndarray

    @property
    def rank(self) -> int:
        return self.factor.shape[1]

    def congruence(self, s: np.ndarray) -> np.ndarray:
        """factor^T s[order][:, order] factor, [r, r]; only its lower triangle is to be read."""
        s = s[np.ix_(self.order, self.order)]
        if self.rank == len(s):
            return _sygst(s, self.factor, itype=2, lower=1)[0]
        return self.factor.T @ (s @ self.factor)


def covariance_root(statistics: FeatureStatistics) -> Root:
    """The pivoted Cholesky factor of the covariance; of rank n - 1 at most, and lower for constant features.

    Raises:
        ValueError: fewer than 2 samples.
    """
    packed, pivots, rank, _ = _pstrf(statistics.covariance, lower=1)
    return Root(pivots - 1, np.tril(packed)[:, : min(rank, statistics.n - 1)])


def frechet_distance(a: FeatureStatistics, b: FeatureStatistics, root: Root | None = None) -> float:
    """d^2 = |mu1 - mu2|^2 + tr S1 + tr S2 - 2 tr (S1^(1/2) S2 S1^(1/2))^(1/2), at least 0.

    The squared 2-Wasserstein distance of the Gaussians with the means and covariances of `a` and `b` (Dowson
    and Landau, 1982), used on features of images by Heusel et al., 2017. For any R with S2 = R R^T the last
    trace is the sum of the roots of the eigenvalues of R^T S1 R, which is symmetric and as small as the rank of
    S2; so a Cholesky factor and one symmetric eigenproblem without vectors do. This stays exact for singular
    covariances, which a few samples of many features have, and is then faster.

    It is biased upwards for finite n, so only numbers of the same n compare. With Inception features and the
    rest of that protocol it is FID; with any other extractor it is fd/<extractor>.

    Args:
        root: `covariance_root(b)`, to spare its computation where many samples meet one reference.

    Raises:
        ValueError: different feature dimensions, fewer than 2 samples on a side, or a root of other features.
    """
    _check(a, b, root)
    s1, s2 = a.covariance, b.covariance
    if a.n <= min(b.n, b.dim):
        product = covariance_root(a).congruence(s2)
    else:
        product = (root or covariance_root(b)).congruence(s1)
    values = _eigenvalues(product)
    # Eigenvalues that are 0 come out as tiny negatives.
    d2 = np.square(a.mean - b.mean).sum() + np.trace(s1) + np.trace(s2) - 2 * np.sqrt(values.clip(min=0)).sum()
    return max(float(d2), 0.0)


def frechet_gradient(
    a: FeatureStatistics, b: FeatureStatistics, root: Root | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The derivatives of d^2 by the mean, [D], and by the covariance, symmetric [D, D], of `a`.

    2 (mu1 - mu2) and I - R (R^T S1 R)^(-1/2) R^T with S2 = R R^T: the second matrix is the optimal map from
    the first Gaussian to the other (Dowson and Landau, 1982). Where S1 is singular the inverse is the
    pseudo-inverse: the derivative within the directions that the samples of `a` span.

    Raises:
        ValueError: as `frechet_distance`.
    """
    _check(a, b, root)
    root = root or covariance_root(b)
    by_covariance = np.eye(a.dim)
    if not root.rank:
        return 2 * (a.mean - b.mean), by_covariance
    values, vectors = eigh(root.congruence(a.covariance), lower=True, driver="evd", check_finite=False)
    kept = values > len(values) * np.finfo(np.float64).eps * max(values[-1], 0.0)
    half = root.factor @ (vectors[:, kept] * values[kept] ** -0.25)
    by_covariance[np.ix_(root.order, root.order)] -= half @ half.T
    return 2 * (a.mean - b.mean), by_covariance


def _eigenvalues(lower: np.ndarray) -> np.ndarray:
    if not lower.size:  # a side of equal images
        return np.zeros(0)
    return eigh(lower, lower=True, eigvals_only=True, driver="evd", check_finite=False, overwrite_a=True)


def _check(a: FeatureStatistics, b: FeatureStatistics, root: Root | None) -> None:
    if a.dim != b.dim:
        raise ValueError(f"cannot compare statistics of {a.dim}-d and {b.dim}-d features")
    if a.n < 2 or b.n < 2:
        raise ValueError(f"a Fréchet distance needs at least 2 samples a side, there are {a.n} and {b.n}")
    if root is not None and len(root.order) != b.dim:
        raise ValueError(f"the root is of {len(root.order)}-d features, the statistics are of {b.dim}-d ones")
