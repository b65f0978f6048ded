"""Balls around images that reach to their k-th neighbour, the common part of four measures."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import ClassVar, Literal
from weakref import WeakKeyDictionary

import numpy as np

from cmray.core.errors import DataError
from cmray.metrics.measures.base import MeasureConfig, Sample

#: Rows and columns of the largest piece of a distance matrix that is held at once: 32 MiB in float64.
CHUNK = 2048
#: Distances that differ by less than this share count as equal, so that rounding decides no tie.
TIE = 1e-9
#: Parts of the sample that are left out one at a time, for standard errors.
GROUPS = 20

_nearest: WeakKeyDictionary[Sample, np.ndarray] = WeakKeyDictionary()


class NeighbourMeasure(MeasureConfig):
    """A measure of which images lie in whose balls; a variant adds k, the neighbour that a ball reaches to."""

    better: ClassVar[Literal["lower", "higher"]] = "higher"
    needs: ClassVar[frozenset[str]] = frozenset({"features"})

    def sides(self, sample: Sample, reference: Sample | None) -> tuple[Sample, np.ndarray, np.ndarray]:
        """The reference, and the features of generated and of real images. Raises DataError as `against` does."""
        other = self.against(sample, reference)
        return other, self.array(sample, "features", "sample"), self.array(other, "features", "reference")


def _squared(x: np.ndarray, y: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """|x_i - y_j|^2, float64 [n, m]; less than rounding away from 0 counts as 0."""
    x, y = x.astype(np.float64) - shift, y.astype(np.float64) - shift
    scale = np.square(x).sum(axis=1)[:, None] + np.square(y).sum(axis=1)
    out = x @ y.T
    out *= -2
    out += scale
    scale *= 1e-13
    out[out < scale] = 0
    return out


def _pieces(x: np.ndarray, y: np.ndarray, chunk: int) -> Iterator[tuple[slice, slice, np.ndarray]]:
    """Rows, columns and the squared distances there, for all pairs of a row of x and one of y, row by row."""
    shift = y.mean(axis=0, dtype=np.float64)
    for i in range(0, len(x), chunk):
        for j in range(0, len(y), chunk):
            rows, columns = slice(i, i + chunk), slice(j, j + chunk)
            yield rows, columns, _squared(x[rows], y[columns], shift)


def nearest_squared(x: np.ndarray, k: int, chunk: int = CHUNK) -> np.ndarray:
    """Squared distances of each row of x [n, D] to its k nearest other rows, ascending, float64 [n, k], k < n."""
    best = np.full((len(x), k), np.inf)
    for rows, columns, distances in _pieces(x, x, chunk):
        if rows == columns:
            np.fill_diagonal(distances, np.inf)
        both = np.concatenate([best[rows], distances], axis=1)
        best[rows] = np.partition(both, k - 1, axis=1)[:, :k]
    return np.sort(best, axis=1)


def radii_squared(side: Sample, features: np.ndarray, k: int, measure: str, called: str) -> np.ndarray:
    """Squared radius of the ball around each image of a side, to its k-th nearest in that side; float64 [n].

    Kept as long as the side lives: a reference meets many samples, and four measures want the same.

    Raises:
        DataError: no more than k images.
    """
    if len(features) <= k:
        raise DataError(f"{measure}: k={k} needs at least {k + 1} images; the {called} has {len(features)}")
    known = _nearest.get(side)
    if known is None or known.shape[1] < k:
        known = nearest_squared(features, min(max(k, 5), len(features) - 1))
        _nearest[side] = known
    return known[:, k - 1]


def in_balls(
    points: np.ndarray, centres: np.ndarray, radii: np.ndarray, closed: bool, chunk: int = CHUNK
) -> tuple[np.ndarray, np.ndarray]:
    """How many balls hold each point, int64 [n], and how many points each ball holds, int64 [m].

    Args:
        points: [n, D].
        centres, radii: [m, D] and squared radii [m].
        closed: whether points on the surface are in.
    """
    per_point, per_ball = np.zeros(len(points), dtype=np.int64), np.zeros(len(centres), dtype=np.int64)
    reach = radii * (1 + TIE if closed else 1 - TIE)
    for rows, columns, distances in _pieces(points, centres, chunk):
        inside = distances <= reach[columns] if closed else distances < reach[columns]
        per_point[rows] += inside.sum(axis=1)
        per_ball[columns] += inside.sum(axis=0)
    return per_point, per_ball


def reached(held: np.ndarray) -> tuple[float, float]:
    """The share of real images that some group of generated ones reaches, and its standard error.

    The error is the delete-a-group jackknife's (Efron and Stein, 1981) over generated images, with the reference
    fixed. It comes out up to a quarter too large rather than too small.

    Args:
        held: int [G, N], how often group g reaches real image i; G >= 2.
    """
    total, groups = held.sum(axis=0), len(held)
    without = np.count_nonzero(total - held, axis=1) / held.shape[1]
    error = math.sqrt((groups - 1) / groups * np.square(without - without.mean()).sum())
    return float(np.count_nonzero(total) / held.shape[1]), error


def groups_of(n: int) -> list[np.ndarray]:
    """The indices 0 .. n-1 in consecutive groups, fewer than GROUPS only for fewer images."""
    return np.array_split(np.arange(n), min(GROUPS, n))
