"""Statistics of image features that many workers gather in parts and one place merges."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor

from cmray.core.errors import DataError


class FeatureStatistics:
    """Count, sum and sum of outer products of feature vectors, in float64.

    Sums rather than means are kept because they merge by addition; in float64 the cancellation in
    `covariance` costs about 1e-16 mean^2 / variance, far below the noise of any number of samples.

    Addition rounds, so the last bits depend on how the features were split and in which order the parts were
    merged. Whoever needs the same `sha256` twice uses the same blocks in the same order (see
    `cmray.metrics.reference`).

    Args:
        dim: D, the length of a feature vector, at least 1.
    """

    def __init__(self, dim: int):
        if dim < 1:
            raise ValueError(f"features have at least 1 dimension, not {dim}")
        self.n = 0
        self.sum = np.zeros(dim, dtype=np.float64)
        self.outer = np.zeros((dim, dim), dtype=np.float64)

    @property
    def dim(self) -> int:
        return self.sum.shape[0]

    def update(self, features: Tensor | np.ndarray) -> None:
        """Add the rows of `features`, any float type, [B, D], on any device.

        Raises:
            ValueError: not [B, D].
            DataError: rows with NaN or infinite values, with their number; nothing is added then.
        """
        rows = features.detach().cpu().double().numpy() if isinstance(features, Tensor) else features
        rows = np.asarray(rows, dtype=np.float64)
        if rows.ndim != 2 or rows.shape[1] != self.dim:
            raise ValueError(f"features have shape {list(rows.shape)} where [B, {self.dim}] is needed")
        bad = int((~np.isfinite(rows)).any(axis=1).sum())
        if bad:
            raise DataError(f"{bad} of {len(rows)} feature vectors hold NaN or infinite values")
        self.n += len(rows)
        self.sum += rows.sum(axis=0)
        self.outer += rows.T @ rows

    def merge(self, other: FeatureStatistics) -> None:
        """Add the samples of `other`, which stays as it is. Raises ValueError for another D."""
        if other.dim != self.dim:
            raise ValueError(f"cannot merge statistics of {other.dim}-d features into {self.dim}-d ones")
        self.n += other.n
        self.sum += other.sum
        self.outer += other.outer

    @property
    def mean(self) -> np.ndarray:
        """float64 [D]. Raises ValueError without samples."""
        if self.n < 1:
            raise ValueError("statistics without samples have no mean")
        return self.sum / self.n

    @property
    def covariance(self) -> np.ndarray:
        """Unbiased (over n - 1), symmetric, float64 [D, D]. Raises ValueError for fewer than 2 samples."""
        if self.n < 2:
            raise ValueError(f"a covariance needs at least 2 samples, there are {self.n}")
        centred = self.outer - np.outer(self.sum, self.mean)
        # Rounding may break the symmetry in the last bit, and eigh would then read one triangle only.
        return (centred + centred.T) / (2 * (self.n - 1))

    def to_arrays(self) -> dict[str, np.ndarray]:
        """{"n": int64 [], "sum": float64 [D], "outer": float64 [D, D]}, copies; fit for np.savez."""
        return {"n": np.array(self.n, dtype=np.int64), "sum": self.sum.copy(), "outer": self.outer.copy()}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> FeatureStatistics:
        """What `to_arrays` gave. Raises DataError for missing arrays, wrong shapes and impossible values."""
        missing = [key for key in ("n", "sum", "outer") if key not in arrays]
        if missing:
            raise DataError(f"feature statistics lack {', '.join(missing)}")
        n, total, outer = (np.asarray(arrays[key]) for key in ("n", "sum", "outer"))
        if n.shape != () or total.ndim != 1 or total.size < 1 or outer.shape != (total.size, total.size):
            raise DataError(
                "feature statistics need n [], sum [D] and outer [D, D]; found "
                f"{list(n.shape)}, {list(total.shape)} and {list(outer.shape)}"
            )
        if int(n) < 0 or not np.isfinite(total).all() or not np.isfinite(outer).all():
            raise DataError("feature statistics hold NaN, infinite values or a negative count")
        statistics = cls(total.size)
        statistics.n = int(n)
        statistics.sum[:] = total
        statistics.outer[:] = outer
        return statistics

    def sha256(self) -> str:
        """Hex digest of n, sum and outer, the same on every byte order."""
        digest = hashlib.sha256(f"cmray.FeatureStatistics n={self.n} dim={self.dim}".encode())
        digest.update(np.ascontiguousarray(self.sum, dtype="<f8").tobytes())
        digest.update(np.ascontiguousarray(self.outer, dtype="<f8").tobytes())
        return digest.hexdigest()


def merged(blocks: Sequence[FeatureStatistics]) -> FeatureStatistics:
    """The statistics of all blocks, at least one, summed in the order given: floating-point sums depend on it."""
    total = FeatureStatistics(blocks[0].dim)
    for block in blocks:
        total.merge(block)
    return total
