"""Feature statistics of a whole dataset, the side every Fréchet distance is measured against."""

from __future__ import annotations

import warnings
import zipfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cmray.core.errors import DataError
from cmray.core.files import sha256_of
from cmray.core.protocol import REFERENCE_BLOCK
from cmray.metrics.extractors import Extractor
from cmray.metrics.statistics import FeatureStatistics


def reference_statistics(
    extractor: Extractor, images: Tensor | np.ndarray | Iterable[np.ndarray], block: int = REFERENCE_BLOCK
) -> FeatureStatistics:
    """Statistics of `images`, uint8 [N, C, H, W], extracted in blocks of `block` from first to last.

    Images may come whole or in parts of any sizes: it makes no difference to the result. The blocks and their
    order are fixed, so one machine gives the same bits and `sha256` each time. Another processor's convolutions
    may round differently: compute a reference once and carry it to where it is needed.

    Raises:
        ValueError: block < 1.
        DataError: no images, not uint8 [N, C, H, W], or a shape the extractor does not take.
    """
    if block < 1:
        raise ValueError(f"block must be at least 1, not {block}")
    statistics = FeatureStatistics(extractor.dim)
    parts = [images] if isinstance(images, Tensor | np.ndarray) else images
    left: Tensor | None = None
    for part in parts:
        with warnings.catch_warnings():
            # data may be shared memory that must not be written; here it is only read
            warnings.filterwarnings("ignore", message="The given NumPy array is not writ")
            tensor = torch.as_tensor(part)
        extractor.check_images(tensor)
        tensor = tensor if left is None else torch.cat([left, tensor])
        whole = len(tensor) // block * block
        for group in tensor[:whole].split(block) if whole else ():
            statistics.update(extractor(group))
        left = tensor[whole:] if whole < len(tensor) else None
    if left is not None:
        statistics.update(extractor(left))
    if not statistics.n:
        raise DataError("a reference needs images, there are none")
    return statistics


#: files of published statistics do not tell of how many images they are: as good as infinitely many
UNKNOWN_N = 1 << 40
#: what a published covariance may lack of symmetry and of eigenvalues from 0 on, as a share of the largest
ROUNDING = 1e-3


class GivenStatistics(FeatureStatistics):
    """A mean and a covariance that were given, not gathered. Nothing can be added or merged.

    Args:
        mean: float64 [D].
        covariance: float64 [D, D].
    """

    def __init__(self, mean: np.ndarray, covariance: np.ndarray):
        super().__init__(len(mean))
        self.n = UNKNOWN_N
        self._mean, self._covariance = mean, covariance

    @property
    def mean(self) -> np.ndarray:
        return self._mean

    @property
    def covariance(self) -> np.ndarray:
        return self._covariance

    def update(self, features: Tensor | np.ndarray) -> None:
        raise TypeError("given statistics cannot grow")

    def merge(self, other: FeatureStatistics) -> None:
        raise TypeError("given statistics cannot grow")

    def to_arrays(self) -> dict[str, np.ndarray]:
        raise TypeError("given statistics have no sums")


@dataclass(frozen=True)
class Published:
    """A file of published statistics: of features, and of spatial ones where it has them."""

    path: Path
    sha256: str
    statistics: GivenStatistics
    spatial: GivenStatistics | None


def read_published(path: Path) -> Published:
    """The statistics in an .npz with mu [D] and sigma [D, D] as clean-fid publishes them, or also mu_s [S] and
    sigma_s [S, S] of spatial features, as guided-diffusion (ADM) does.

    Raises:
        DataError: no such file, no .npz, arrays that are missing or of another shape, not finite, or no covariance.
    """
    try:
        archive = np.load(path, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise DataError(f"{path} is a single array; statistics are an .npz with mu and sigma")
        with archive as opened:
            found = {k: np.asarray(opened[k]) for k in ("mu", "sigma", "mu_s", "sigma_s") if k in opened.files}
            names = sorted(opened.files)
    except (OSError, ValueError, EOFError, RuntimeError, zlib.error, zipfile.BadZipFile) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise DataError(f"{path} cannot be read as an .npz of statistics: {reason}") from None
    if not {"mu", "sigma"} <= found.keys():
        some = ", ".join(names[:6]) or "nothing"
        raise DataError(f"{path} holds {some}; statistics are mu [D] and sigma [D, D] (and mu_s, sigma_s)")
    spatial = _given(path, found, "_s") if {"mu_s", "sigma_s"} <= found.keys() else None
    return Published(path, sha256_of(path), _given(path, found, ""), spatial)


def _given(path: Path, arrays: dict[str, np.ndarray], suffix: str) -> GivenStatistics:
    mean, covariance = arrays[f"mu{suffix}"], arrays[f"sigma{suffix}"]
    if mean.ndim != 1 or not mean.size or covariance.shape != (mean.size, mean.size):
        found = f"{list(mean.shape)} and {list(covariance.shape)}"
        raise DataError(f"{path}: mu{suffix} and sigma{suffix} are {found}; they must be [D] and [D, D]")
    if not all(np.issubdtype(a.dtype, np.floating) and np.isfinite(a).all() for a in (mean, covariance)):
        raise DataError(f"{path}: mu{suffix} and sigma{suffix} must be finite floating-point numbers")
    covariance = covariance.astype(np.float64)
    apart = float(np.abs(covariance - covariance.T).max())
    if apart > ROUNDING * np.abs(covariance).max():
        raise DataError(f"{path}: sigma{suffix} must be symmetric; it differs from its transpose by up to {apart:.3g}")
    values = np.linalg.eigvalsh((covariance + covariance.T) / 2)
    if values[0] < -ROUNDING * np.abs(values).max():
        raise DataError(f"{path}: sigma{suffix} is no covariance: it has a negative eigenvalue, {values[0]:.3g}")
    return GivenStatistics(mean.astype(np.float64), (covariance + covariance.T) / 2)
